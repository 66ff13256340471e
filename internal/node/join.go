// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"strings"

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
	content.Iterators, err = e.pinnedIterators(name, v.members)
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
func (e *Engine) pinnedIterators(name string, members []member) (its []podfs.Iterator, err error) {
	for i, m := range members {
		if m.hook.Kind() != volume.KindIter {
			continue
		}
		l, err := link.LoadPinnedLink(e.linkPin(name, i, 0, m.program), nil)
		if err != nil {
			return its, fmt.Errorf("iterator %q: %w", m.program, pinsError(err))
		}
		its = append(its, podfs.Iterator{Name: m.program, Link: l})
	}
	return its, nil
}

// basis makes a decision be about what runs: since it was loaded the tag may have moved to another image, and the default
// route to another interface.
func (r *Record) basis() basis { return basis{points: r.points, digest: r.Digest, object: r.Object} }

// points are where a program was attached.
func (r *Record) points(_ context.Context, a volume.Attach) (points []dispatcher.Point, err error) {
	for _, p := range r.Programs {
		// Of a point that has an interface it is the second word.
		_, rest, _ := strings.Cut(p.Point, " ")
		name, _, _ := strings.Cut(rest, " ")
		if p.Name == a.Program && onInterfaces(a.Hook, []string{name}).String() == p.Point {
			points = append(points, dispatcher.Point{Interface: name})
		}
	}
	if len(points) == 0 {
		return nil, fmt.Errorf("volume: %w: program %.64q runs elsewhere; unpublish it first", ErrConflict, a.Program)
	}
	return points, nil
}
