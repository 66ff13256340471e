// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// teardownTimeout bounds the undo of a failed publish, which goes on when the caller has given up.
const teardownTimeout = 30 * time.Second

// Publish makes the volume run and mounts it on its target. It is idempotent: the same request again changes nothing.
// When it returns an error, nothing is left, unless the error is ErrTeardown or ErrBusy.
//
// A PersistentVolume runs once on a node. Each further target is decided about anew, by what runs; what fails for one of them
// leaves the others alone.
func (e *Engine) Publish(ctx context.Context, req Request) error {
	spec, err := volume.Parse(req.Attributes)
	if err != nil {
		return err
	}
	if err := checkReadOnly(req, spec); err != nil {
		return err
	}
	if err := e.opts.Host.Do(func() error { return podfs.Check(req.Target, e.opts.TargetRoot) }); err != nil {
		return err
	}
	name := volume.FileName(req.VolumeID)
	unlock, err := e.turn(ctx, name, req)
	if err != nil {
		return err
	}
	defer unlock()

	var rec *Record
	whole := false
	err = e.opts.Host.Do(func() (err error) {
		read, unread := e.records.read(name)
		if whole, err = e.leaveUnread(name, req, unread); whole || err != nil {
			return err
		}
		if rec, err = e.standing(ctx, name, req, read, unread); err != nil || rec != nil && rec.Target(req.Target) != nil {
			return err
		}
		others, err := e.isOthers(name, req.Target)
		if others {
			err = &podfs.TargetError{Path: req.Target, Msg: "another volume is mounted there; unpublish it", Kind: podfs.ErrTarget}
		}
		return err
	})
	if whole {
		return nil
	}
	if err != nil {
		return err
	}
	on := basis{points: e.pointsHere}
	if rec != nil {
		if done, err := rec.settles(req); done || err != nil {
			return err
		}
		on = rec.basis()
	}
	v, d := e.decide(ctx, req, spec, on)
	e.tell(ctx, d)
	if d.Err != nil {
		return d.Err
	}
	effects := e.join
	if rec == nil {
		rec, effects = v.record(req), e.apply
	} else {
		rec.Targets = append(rec.Targets, v.target(req))
	}
	return e.opts.Host.Do(func() error { return e.carryOut(ctx, name, v, rec, req.Target, effects) })
}

// isOthers says whether a target shows another volume, which must not go with what fails or ends there.
func (e *Engine) isOthers(name, target string) (bool, error) {
	if mounted, err := podfs.Mounted(target); !mounted || err != nil {
		return false, err
	}
	names, err := e.records.names()
	if err != nil {
		return false, err
	}
	for _, other := range names {
		if rec, err := e.records.read(other); other != name && err == nil && rec.Target(target) != nil {
			return true, nil
		}
	}
	return false, nil
}

// carryOut makes the effects of a publish, or takes back what it made of them.
func (e *Engine) carryOut(
	ctx context.Context, name string, v *decided, rec *Record, target string, effects func(context.Context, string, *decided, *Record) error,
) error {
	if err := ensurePins(e.opts.BPFFSDir); err != nil {
		return err
	}
	rec.Target(target).Device = deviceOf(e.opts.TargetRoot)
	if rec.Attachments == nil {
		rec.Attachments = v.attachments()
	}
	if err := e.records.write(rec); err != nil {
		return err // nothing has changed
	}
	e.reached(StageRecorded)
	if err := effects(ctx, name, v, rec); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
		defer cancel()
		if terr := e.take(undo, name, rec, target); terr != nil {
			return fmt.Errorf("%w: %w; after: %w", ErrTeardown, terr, err)
		}
		return err
	}
	klog.FromContext(ctx).Info("volume published", "image", rec.Digest, "points", len(v.members), "targets", len(rec.Targets))
	return nil
}

// checkReadOnly refuses a volume that its pod wants read-only and with maps to write. Of a PersistentVolume an admin wrote
// the attributes: there, a pod may do with less.
func checkReadOnly(req Request, spec volume.Spec) error {
	i := slices.IndexFunc(spec.Maps, func(m volume.MapRef) bool { return m.Access == volume.ReadWrite })
	if i < 0 || !req.ReadOnly || req.Subject.Persistent {
		return nil
	}
	return &volume.AttributeError{Key: volume.KeyMaps, Msg: fmt.Sprintf("map %q is rw in a volume with readOnly: true; leave one of the two out", spec.Maps[i].Name)}
}

// sharedPatience is how long a pod waits while another pod's target of the same PersistentVolume is published. That takes
// milliseconds, or as long as a pull does; kubelet would come back after half a second and more.
const sharedPatience = time.Second

// turn locks the volume. kubelet does one call at a time for a pod's volume, so another one that is in flight is one that it
// gave up, and ErrBusy its answer; but the pods of a PersistentVolume start at once, and wait for each other.
func (e *Engine) turn(ctx context.Context, name string, req Request) (unlock func(), err error) {
	if req.Subject.Persistent {
		return e.locks.within(ctx, sharedPatience, name)
	}
	return e.locks.try(name)
}

// standing returns what is published of a volume, or nil, given its record and why it could not be read. What a crash left
// half-done is taken away, and the target of req if somebody unmounted it.
func (e *Engine) standing(ctx context.Context, name string, req Request, rec *Record, err error) (*Record, error) {
	if errors.Is(err, ErrUnknownVolume) {
		return nil, nil
	}
	if err != nil && !errors.Is(err, ErrUnreadable) {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err) // for the moment: it may be that of a volume which runs
	}
	if err != nil || !rec.runs() || !e.pinned(name) {
		// Unreadable, half-published, or its pins are gone: start over.
		targets := []string{req.Target}
		if rec != nil {
			targets = rec.paths()
		}
		if err := e.teardown(ctx, name, targets); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTeardown, err)
		}
		return nil, nil
	}
	for _, t := range slices.Clone(rec.Targets) {
		whole := t.State == statePublished // and whether another is mounted is no concern of req's
		if t.Path == req.Target {
			if whole, err = t.whole(); err != nil {
				return nil, err
			}
		}
		if whole {
			continue
		}
		err := e.take(ctx, name, rec, t.Path)
		switch {
		case err == nil:
		case t.Path == req.Target || len(rec.Targets) == 1:
			return nil, fmt.Errorf("%w: %w", ErrTeardown, err)
		default:
			klog.FromContext(ctx).Error(err, "another target not taken away, its unpublish tries again", "target", t.Path)
		}
	}
	if len(rec.Targets) == 0 {
		return nil, nil
	}
	return rec, nil
}

// pinned says whether a volume has pins. Without, nothing of it runs, whatever its record and its mount look like:
// somebody unmounted the bpffs.
func (e *Engine) pinned(name string) bool {
	_, err := os.Stat(e.pins(name))
	return !errors.Is(err, fs.ErrNotExist)
}
