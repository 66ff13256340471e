// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/internal/podfs"
)

// Volume is one volume as List shows it: its record, and how it is.
type Volume struct {
	Record
	Mounted bool   `json:"mounted"` // each target shows it
	Health  Health `json:"health"`

	name      string // of its record and pins
	unmounted int    // targets that are published and do not show it
	unseen    error  // why a target cannot be looked at
	unread    error  // why the record cannot be read
}

// Count returns how many volumes have a record. Unlike List it looks at no volume.
func (e *Engine) Count() (int, error) {
	names, err := e.records.names()
	return len(names), err
}

// List returns every volume with a record, by id.
func (e *Engine) List() (volumes []Volume, err error) {
	err = e.opts.Host.Do(func() error {
		if volumes, err = e.volumes(); err != nil {
			return err
		}
		points, unread := e.points.Status()
		for i := range volumes {
			volumes[i].Health = e.examine(volumes[i], points, unread)
		}
		return nil
	})
	return volumes, err
}

// Images returns the digests of the images that volumes with a record were made from.
func (e *Engine) Images() ([]digest.Digest, error) {
	volumes, err := e.volumes()
	if err != nil {
		return nil, err
	}
	var out []digest.Digest
	for _, v := range volumes {
		out = append(out, v.Digest)
	}
	return out, nil
}

// volumes is List without their health.
func (e *Engine) volumes() ([]Volume, error) {
	names, err := e.records.names()
	if err != nil {
		return nil, err
	}
	var out []Volume
	for _, name := range names {
		v, err := e.volume(name)
		if errors.Is(err, ErrUnknownVolume) {
			continue // unpublished in the meantime
		} else if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.VolumeID, b.VolumeID) })
	return out, nil
}

// volume reads one record. One that cannot be read is no error: Unpublish takes the volume away all the same, and until
// then it hides no other. Nor does a target that cannot be looked at.
func (e *Engine) volume(name string) (Volume, error) {
	rec, err := e.records.read(name)
	if errors.Is(err, ErrUnknownVolume) {
		return Volume{}, err
	} else if err != nil {
		return Volume{Record: Record{VolumeID: name, State: stateUnreadable}, name: name, unread: err}, nil
	}
	v := Volume{Record: *rec, Mounted: true, name: name}
	for _, t := range rec.Targets {
		mounted, err := podfs.Mounted(t.Path)
		if !mounted {
			v.Mounted = false
		}
		switch {
		case err != nil:
			v.unseen = err
		case !mounted && t.State == statePublished:
			v.unmounted++
		}
	}
	return v, nil
}
