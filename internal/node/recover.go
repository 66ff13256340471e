// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"
)

// Recover takes away what a crash left half-done: a record without its mount, pins without a record, members without
// a record. Volumes that are whole keep running and are not touched, nor are those of which the record cannot be read. One
// that cannot be taken away is logged and left to its next call: it must not keep every other volume of the node from being
// published. Call it once before the first Publish.
func (e *Engine) Recover(ctx context.Context) error {
	return e.opts.Host.Do(func() error { return e.recover(ctx) })
}

func (e *Engine) recover(ctx context.Context) error {
	names, err := e.suspects(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := e.recoverVolume(ctx, name); err != nil && !errors.Is(err, ErrBusy) {
			klog.FromContext(ctx).Error(err, "volume not recovered, its next publish or unpublish tries again", "volume", name)
		}
	}
	if err := e.points.Recover(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "point not recovered, its next change tries again")
	}
	return e.locks.sweep()
}

func (e *Engine) recoverVolume(ctx context.Context, name string) error {
	unlock, err := e.locks.try(name)
	if err != nil {
		return err // another process works on it
	}
	defer unlock()
	rec, err := e.records.read(name)
	switch {
	case err == nil && rec.runs():
		return e.recoverTargets(ctx, name, rec)
	case err != nil && !errors.Is(err, ErrUnknownVolume):
		klog.FromContext(ctx).V(2).Info("volume left as it is", "volume", name, "reason", err.Error()) // its pod may be using it
		return nil
	}
	if err := e.teardown(ctx, name, rec.paths()); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("half-published volume taken away", "volume", name, "targets", rec.paths())
	return nil
}

// recoverTargets takes away the targets that are not whole, and with the last one the volume.
func (e *Engine) recoverTargets(ctx context.Context, name string, rec *Record) error {
	log := klog.FromContext(ctx).WithValues("volume", name)
	device := deviceOf(e.opts.TargetRoot)
	var errs []error
	for _, t := range slices.Clone(rec.Targets) {
		whole, err := t.whole()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if whole {
			if !e.pinned(name) {
				log.Error(nil, "the pins of a volume are gone, so its programs do not run; delete its pod", "pod", klog.KRef(t.Pod.Namespace, t.Pod.Name))
			}
			continue
		}
		if t.State == statePublished && t.Device != 0 && t.Device != device {
			log.Error(nil, "target not seen, as kubelet's directory of pods is on another file system than when it was published; look whether it is mounted", "target", t.Path)
			continue
		}
		if err := e.take(ctx, name, rec, t.Path); err != nil {
			errs = append(errs, err)
			continue
		}
		log.Info("half-published target taken away", "target", t.Path)
	}
	return errors.Join(errs...)
}

// suspects lists every volume of which anything exists.
func (e *Engine) suspects(ctx context.Context) ([]string, error) {
	names, err := e.records.names()
	if err != nil {
		return nil, err
	}
	pinned, err := entryNames(filepath.Join(e.opts.BPFFSDir, "volumes"))
	if err != nil {
		return nil, err
	}
	points, err := e.points.Status()
	if err != nil {
		klog.FromContext(ctx).Error(err, "points not read, so members without a record are left")
	}
	names = append(names, pinned...)
	for _, p := range points {
		for _, m := range p.Members {
			names = append(names, m.Volume)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func entryNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, nil
}
