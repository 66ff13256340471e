// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"

	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/loader"
)

// join shows what runs at one more target, the last of the record: with maps and iterators from their pins, and a podfs of its
// own. Nothing is loaded and nothing is attached, so those who use the volume already notice nothing.
func (e *Engine) join(ctx context.Context, name string, v *decided, rec *Record) error {
	coll, err := loader.Pinned(v.object, e.pins(name))
	if err != nil {
		return err
	}
	defer coll.Close()
	target := &rec.Targets[len(rec.Targets)-1]
	content, err := v.content(coll, rec, target)
	if err != nil {
		return err
	}
	content.Iterators, err = e.pinnedIterators(name, rec)
	defer func() {
		for _, it := range content.Iterators {
			it.Link.Close()
		}
	}()
	if err != nil {
		return err
	}
	tree, err := podfs.Build(ctx, content, podfs.Options{Types: e.types, Root: e.opts.TargetRoot})
	if err != nil {
		return err
	}
	defer tree.Close()
	return e.show(tree, rec, target)
}

// pinnedIterators opens what attachIterators pinned. The caller closes what is returned, also beside an error.
func (e *Engine) pinnedIterators(name string, rec *Record) (its []podfs.Iterator, err error) {
	for i, p := range rec.Programs {
		if p.Hook != string(volume.KindIter) {
			continue
		}
		l, err := link.LoadPinnedLink(e.linkPin(name, i, 0, p.Name), nil)
		if err != nil {
			return its, fmt.Errorf("iterator %.64q: %w", p.Name, pinsError(err))
		}
		its = append(its, podfs.Iterator{Name: p.Name, Link: l})
	}
	return its, nil
}

// basis makes a decision be about what runs: since it was loaded the tag may have moved to another image, and the default
// route to another interface.
func (r *Record) basis() basis { return basis{points: r.points, digest: r.Digest, object: r.Object} }

// points are where what is asked for was attached, by the interfaces' names of then.
func (r *Record) points(_ context.Context, a volume.Attach) (points []dispatcher.Point, err error) {
	for _, made := range r.Attachments {
		h, err := made.hook()
		if err != nil {
			return nil, err
		}
		names := volume.Interfaces(h)
		if volume.MarshalAttach([]volume.Attach{{Program: a.Program, Hook: onInterfaces(a.Hook, names)}}) == made.Attach {
			points = append(points, dispatcher.Point{Interface: names[0]})
		}
	}
	if len(points) == 0 {
		return nil, errOtherObject
	}
	return points, nil
}
