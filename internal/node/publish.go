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
func (e *Engine) Publish(ctx context.Context, req Request) error {
	spec, err := volume.Parse(req.Attributes)
	if err != nil {
		return err
	}
	if err := checkReadOnly(req, spec); err != nil {
		return err
	}
	if err := podfs.Check(req.Target, e.opts.TargetRoot); err != nil {
		return err
	}
	name := volume.FileName(req.VolumeID)
	unlock, err := e.locks.try(name)
	if err != nil {
		return err
	}
	defer unlock()

	done, err := e.alreadyPublished(ctx, name, req)
	if done || err != nil {
		return err
	}
	v, d := e.decide(ctx, req, spec, pointsHere)
	e.tell(ctx, d)
	if d.Err != nil {
		return d.Err
	}
	rec := v.record(req)
	if err := e.apply(ctx, name, v, rec); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
		defer cancel()
		if terr := e.teardown(undo, name, req.Target); terr != nil {
			return fmt.Errorf("%w: %w; after: %w", ErrTeardown, terr, err)
		}
		return err
	}
	klog.FromContext(ctx).Info("volume published", "image", rec.Digest, "points", len(v.members))
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

// alreadyPublished says whether req has been carried out before. What a crash left half-done is taken away.
func (e *Engine) alreadyPublished(ctx context.Context, name string, req Request) (bool, error) {
	rec, err := e.records.read(name)
	if errors.Is(err, ErrUnknownVolume) {
		return false, nil
	}
	if err == nil && rec.State == statePublished {
		if !rec.sameRequest(req) {
			return false, fmt.Errorf("volume: %w; unpublish it first", ErrConflict)
		}
		mounted, err := podfs.Mounted(rec.Target)
		if err != nil {
			return false, err
		}
		if mounted && e.pinned(name) {
			return true, nil
		}
	}
	// Half-published, unreadable, or its mount or its pins are gone: start over.
	target := req.Target
	if rec != nil {
		target = rec.Target
	}
	if err := e.teardown(ctx, name, target); err != nil {
		return false, fmt.Errorf("%w: %w", ErrTeardown, err)
	}
	return false, nil
}

// pinned says whether a volume has pins. Without, nothing of it runs, whatever its record and its mount look like:
// somebody unmounted the bpffs.
func (e *Engine) pinned(name string) bool {
	_, err := os.Stat(e.pins(name))
	return !errors.Is(err, fs.ErrNotExist)
}
