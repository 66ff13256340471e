// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/panics"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/loader"
)

// apply makes the effects that follow the record, in this order: programs and maps with their pins, attachments, mount,
// record. On an error the caller tears down.
func (e *Engine) apply(ctx context.Context, name string, v *decided, rec *Record) error {
	coll, err := loader.Load(ctx, v.object, loader.Options{Types: e.types})
	if err != nil {
		return err
	}
	defer coll.Close()
	if err := coll.Pin(e.pins(name)); err != nil {
		return err
	}
	e.reached(StageLoaded)

	target := &rec.Targets[0]
	content, err := v.content(coll, rec, target)
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(e.pins(name), "links"), 0o700); err != nil {
		return pinsError(err)
	}
	content.Iterators, err = e.attachIterators(name, v.members, coll)
	defer func() {
		for _, it := range content.Iterators {
			it.Link.Close()
		}
	}()
	if err != nil {
		return err
	}
	// Building what the pod will see leaves nothing behind, and attaching mostly waits for the kernel.
	var tree *podfs.Tree
	var building errgroup.Group
	building.Go(func() error {
		return panics.Catch(func() (err error) {
			tree, err = podfs.Build(ctx, content, podfs.Options{Types: e.types, Root: e.opts.TargetRoot})
			return err
		})
	})
	err = e.attachAll(ctx, name, v.members, coll)
	err = errors.Join(err, building.Wait())
	if tree != nil {
		defer tree.Close()
	}
	if err != nil {
		return err
	}
	e.reached(StageAttached)
	return e.show(tree, rec, target)
}

// show mounts what was built for a target, and says so in the record.
func (e *Engine) show(tree *podfs.Tree, rec *Record, target *Target) (err error) {
	if err := tree.Mount(target.Path); err != nil {
		return err
	}
	e.reached(StageMounted)

	if target.Files, err = podfs.Stats(target.Path); err != nil {
		return err
	}
	rec.State, target.State = statePublished, statePublished
	if err := e.records.write(rec); err != nil {
		return err
	}
	e.reached(StagePublished)
	return nil
}

func (e *Engine) attachAll(ctx context.Context, name string, members []member, coll *loader.Collection) error {
	for i, m := range members {
		if m.hook.Kind() == volume.KindIter {
			continue // attachIterators did
		}
		if err := e.attach(ctx, name, i, m, coll); err != nil {
			return fmt.Errorf("program %q: %w", m.program, err)
		}
	}
	return nil
}

// attachIterators attaches and pins the members that the volume shows as files. Nothing runs by that: readers run them. The
// caller closes what is returned, also beside an error.
func (e *Engine) attachIterators(name string, members []member, coll *loader.Collection) (its []podfs.Iterator, err error) {
	for i, m := range members {
		if m.hook.Kind() != volume.KindIter {
			continue
		}
		links, err := hook.Attach(coll.Programs[m.program], m.hook)
		if err != nil {
			return its, fmt.Errorf("program %q: %w", m.program, err)
		}
		its = append(its, podfs.Iterator{Name: m.program, Link: links[0]})
		if err := links[0].Pin(e.linkPin(name, i, 0, m.program)); err != nil {
			return its, pinsError(err)
		}
	}
	return its, nil
}

// attach runs one member: by the dispatcher where several must share one program, else by links of its own.
func (e *Engine) attach(ctx context.Context, name string, i int, m member, coll *loader.Collection) error {
	prog := coll.Programs[m.program]
	if m.point != nil {
		asked := dispatcher.Member{Volume: name, Program: m.program}
		mode := volume.XDPAuto
		switch h := m.hook.(type) {
		case *volume.XDP:
			asked.Priority, asked.ProceedOn, mode = h.Priority, h.ProceedOn, h.Mode
		case *volume.TC:
			asked.Priority, asked.ProceedOn = h.Priority, h.ProceedOn
		}
		at, err := e.points.Attach(ctx, *m.point, mode, asked, dispatcher.Program{Program: prog, Spec: coll.Specs[m.program], Maps: coll.Refers})
		if err != nil {
			return err
		}
		klog.FromContext(ctx).V(4).Info("program attached", "program", m.program, "point", m.hook.String(), "mode", at.Mode, "way", at.Way, "why", at.Why)
		return nil
	}
	links, err := hook.Attach(prog, m.hook)
	if err != nil {
		return err
	}
	for j, l := range links {
		err = errors.Join(err, l.Pin(e.linkPin(name, i, j, m.program)), l.Close())
	}
	return err
}

// linkPin is where link j of member i is pinned. Status reads the name.
func (e *Engine) linkPin(name string, i, j int, program string) string {
	return filepath.Join(e.pins(name), "links", fmt.Sprintf("%d-%d-%s", i, j, program))
}

// content is what the target will show.
func (v *decided) content(coll *loader.Collection, rec *Record, target *Target) (podfs.Content, error) {
	types, err := v.object.TypesBTF()
	if err != nil {
		return podfs.Content{}, err
	}
	c := podfs.Content{
		Volume: podfs.Volume{
			Image:    podfs.Image{Reference: rec.Image, Digest: rec.Digest.String()},
			Signer:   target.Signer,
			Programs: rec.Programs,
		},
		Types:   types,
		Group:   target.Group,
		Context: target.Context,
	}
	for _, m := range v.object.Maps() {
		if !m.Shown {
			continue
		}
		if target.ReadOnly {
			m.Access = volume.ReadOnly
		}
		c.Maps = append(c.Maps, podfs.Map{Name: m.Name, Map: coll.Maps[m.Name], Key: m.Key, Value: m.Value, Access: m.Access})
	}
	slices.SortFunc(c.Maps, func(a, b podfs.Map) int { return strings.Compare(a.Name, b.Name) })
	return c, nil
}
