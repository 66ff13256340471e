// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf/link"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Unpublish takes a target away, and with the last one all of the volume. It is idempotent: a volume that is not there, or
// is not at this target, is no error.
func (e *Engine) Unpublish(ctx context.Context, id, target string) error {
	return e.opts.Host.Do(func() error { return e.unpublish(ctx, id, target) })
}

func (e *Engine) unpublish(ctx context.Context, id, target string) error {
	name := volume.FileName(id)
	unlock, err := e.locks.try(name)
	if err != nil {
		return err
	}
	defer unlock()

	rec, err := e.records.read(name)
	gone := func() error { return e.teardown(ctx, name, []string{target}) }
	switch {
	case errors.Is(err, ErrUnknownVolume):
		// The record is gone after a reboot; a directory may still stand at the target.
		if err := podfs.Check(target, e.opts.TargetRoot); err != nil {
			return nil //nolint:nilerr // nothing of ours is there, and kubelet must be able to forget the volume
		}
		if others, err := e.isOthers(name, target); others || err != nil {
			return err
		}
	case err != nil && !errors.Is(err, ErrUnreadable):
		return fmt.Errorf("%w: %w", ErrTeardown, err) // for the moment: other pods may share the volume
	case err != nil:
		klog.FromContext(ctx).Error(err, "record unreadable, taking the volume away all the same")
	case rec.Target(target) == nil:
		return nil // published elsewhere: nothing of this volume is at target
	default:
		gone = func() error { return e.take(ctx, name, rec, target) }
	}
	if err := gone(); err != nil {
		return fmt.Errorf("%w: %w", ErrTeardown, err)
	}
	if rec != nil {
		klog.FromContext(ctx).Info("volume unpublished", "targets", len(rec.Targets))
	}
	return nil
}

// take takes one target away. The last that is whole takes all of the volume with it: nobody uses what a crash left of others.
// rec then says what stands. The caller holds the volume's lock.
func (e *Engine) take(ctx context.Context, name string, rec *Record, path string) error {
	rest := slices.DeleteFunc(slices.Clone(rec.Targets), func(t Target) bool { return t.Path == path })
	if !slices.ContainsFunc(rest, func(t Target) bool { return t.State == statePublished }) {
		if err := e.teardown(ctx, name, rec.paths()); err != nil {
			return err
		}
		rec.Targets = nil
		return nil
	}
	if err := podfs.Unmount(path); err != nil {
		return err
	}
	// Last, so that whoever is interrupted, or fails here, is found by the record.
	was := rec.Targets
	rec.Targets = rest
	if err := e.records.write(rec); err != nil {
		rec.Targets = was
		return err
	}
	return nil
}

// teardown removes whatever exists of a volume, in the reverse order of apply, the record last. It goes on past
// errors, so that one stuck mount does not keep a program running. The caller holds the volume's lock.
func (e *Engine) teardown(ctx context.Context, name string, targets []string) error {
	var errs []error
	for _, target := range targets {
		errs = append(errs, podfs.Unmount(target))
	}
	errs = append(errs, e.points.Detach(ctx, name), pinsError(unpin(e.pins(name))))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return e.records.remove(name)
}

// pinsError leaves out the path, which names the volume.
func pinsError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("pins: %w; look at the node plugin's bpffs directory", withoutPath(err))
}

// unpin removes a volume's pins: links first, so that nothing runs without its maps.
func unpin(dir string) error {
	if err := unpinLinks(filepath.Join(dir, "links")); err != nil {
		return err
	}
	for _, sub := range []string{"progs", "maps"} {
		if err := removePins(filepath.Join(dir, sub), func(string) {}); err != nil {
			return err
		}
	}
	return removeDir(dir)
}

// unpinLinks detaches before it returns. The kernel frees a link in the background when its last reference is a
// pin, but at once when it is a file descriptor: so hold one while the pin goes. Ending a tracepoint's last link takes
// up to 80 ms of RCU grace periods, so they are closed side by side.
func unpinLinks(dir string) error {
	var held []link.Link
	err := removePins(dir, func(path string) {
		if l, err := link.LoadPinnedLink(path, nil); err == nil {
			held = append(held, l)
		}
	})
	var closing sync.WaitGroup
	for _, l := range held {
		closing.Go(func() { l.Close() })
	}
	closing.Wait()
	return err
}

// removePins removes a directory of pins and calls before for each. A directory that is not there is no error.
func removePins(dir string, before func(path string)) error {
	names, err := entryNames(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		before(path)
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return removeDir(dir)
}

func removeDir(dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
