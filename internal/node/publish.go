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
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/loader"
	"github.com/bpfvol/bpfvol/verify"
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
	if err := supported(spec.Attach); err != nil {
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
	v, err := e.decide(ctx, req, spec)
	if err != nil {
		return err
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
	klog.FromContext(ctx).Info("volume published", "image", rec.Digest, "policy", rec.Policy, "signer", rec.Signer, "points", len(v.members))
	return nil
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
		if err != nil || mounted {
			return mounted, err
		}
	}
	// Half-published, unreadable, or its mount is gone: start over.
	target := req.Target
	if rec != nil {
		target = rec.Target
	}
	if err := e.teardown(ctx, name, target); err != nil {
		return false, fmt.Errorf("%w: %w", ErrTeardown, err)
	}
	return false, nil
}

// decided is a volume that may run: every check has passed and nothing has been changed yet.
type decided struct {
	root    *image.Root
	object  *loader.Object
	code    verify.Bytecode
	grant   verify.Grant
	members []member
}

// member is one attachment at one place.
type member struct {
	program string
	hook    volume.Hook
	point   *dispatcher.Point // nil where the kernel itself shares the hook
}

// decide carries req through the stages that have no effect.
func (e *Engine) decide(ctx context.Context, req Request, spec volume.Spec) (*decided, error) {
	ref, err := image.ParseReference(spec.Image)
	if err != nil {
		return nil, err
	}
	policies, err := e.opts.Policies.For(ctx, req.Subject, ref)
	if err != nil {
		return nil, err
	}
	e.reached(StageAuthorized)
	root, err := e.opts.Images.Resolve(ctx, ref, image.PullOptions{Policy: spec.PullPolicy, Keyring: req.Keyring})
	if err != nil {
		return nil, err
	}
	e.reached(StageResolved)
	signed, err := verify.Check(ctx, root, policies)
	if err != nil {
		return nil, err
	}
	e.reached(StageVerified)
	code, err := verify.Open(ctx, signed)
	if err != nil {
		return nil, err
	}
	e.reached(StageOpened)
	object, err := loader.Parse(code, spec)
	if err != nil {
		return nil, err
	}
	if err := supported(object.Attach()); err != nil {
		return nil, err
	}
	members, facts, err := place(object)
	if err != nil {
		return nil, err
	}
	grant, err := signed.Permit(facts)
	if err != nil {
		return nil, err
	}
	e.reached(StagePermitted)
	return &decided{root: root, object: object, code: code, grant: grant, members: members}, nil
}

// place finds the points of every attachment, and the facts that a policy judges: with the interfaces as they are
// on this node, not as they were asked for.
func place(object *loader.Object) ([]member, verify.Facts, error) {
	var members []member
	facts := object.Facts()
	facts.Attach = nil
	for _, a := range object.Attach() {
		if len(volume.Interfaces(a.Hook)) == 0 {
			members = append(members, member{program: a.Program, hook: a.Hook})
			facts.Attach = append(facts.Attach, a)
			continue
		}
		points, err := dispatcher.Resolve(a.Hook)
		if err != nil {
			return nil, facts, err
		}
		var names []string
		for _, p := range points {
			members = append(members, member{program: a.Program, hook: onInterfaces(a.Hook, []string{p.Interface}), point: &p})
			names = append(names, p.Interface)
		}
		facts.Attach = append(facts.Attach, volume.Attach{Program: a.Program, Hook: onInterfaces(a.Hook, names)})
	}
	return members, facts, nil
}

// onInterfaces returns h with other interfaces.
func onInterfaces(h volume.Hook, names []string) volume.Hook {
	switch h := h.(type) {
	case *volume.XDP:
		on := *h
		on.Interfaces = names
		return &on
	case *volume.TC:
		on := *h
		on.Interfaces = names
		return &on
	}
	return h
}

func supported(attach []volume.Attach) error {
	for _, a := range attach {
		if err := hook.Supported(a.Hook.Kind()); err != nil {
			return fmt.Errorf("program %q: %w", a.Program, err)
		}
	}
	return nil
}

func (v *decided) record(req Request) *Record {
	return &Record{
		Schema:     recordSchema,
		VolumeID:   req.VolumeID,
		State:      statePublishing,
		Target:     req.Target,
		Attributes: req.Attributes,
		Group:      req.Group,
		ReadOnly:   req.ReadOnly,
		Pod:        req.Pod,
		Created:    time.Now().UTC(),
		Image:      v.root.Reference.String(),
		Digest:     v.root.Digest,
		Object:     v.code.Object().Digest,
		Policy:     v.grant.Policy.Name,
		Signer:     v.grant.Signer.String(),
		Programs:   v.programs(),
	}
}

func (v *decided) programs() []podfs.Program {
	var out []podfs.Program
	for _, m := range v.members {
		out = append(out, podfs.Program{Name: m.program, Hook: string(m.hook.Kind()), Point: m.hook.String()})
	}
	return out
}

// apply makes the effects, in this order: record, programs and maps with their pins, attachments, mount, record.
// On an error the caller tears down.
func (e *Engine) apply(ctx context.Context, name string, v *decided, rec *Record) error {
	if err := e.records.write(rec); err != nil {
		return err
	}
	e.reached(StageRecorded)

	coll, err := loader.Load(ctx, v.object, loader.Options{Types: e.types})
	if err != nil {
		return err
	}
	defer coll.Close()
	if err := coll.Pin(e.pins(name)); err != nil {
		return err
	}
	e.reached(StageLoaded)

	content, err := v.content(coll, rec)
	if err != nil {
		return err
	}
	// Building what the pod will see leaves nothing behind, and attaching mostly waits for the kernel.
	var tree *podfs.Tree
	var building errgroup.Group
	building.Go(func() (err error) {
		tree, err = podfs.Build(ctx, content, podfs.Options{Types: e.types, Root: e.opts.TargetRoot})
		return err
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
	if err := tree.Mount(rec.Target); err != nil {
		return err
	}
	e.reached(StageMounted)

	if rec.Files, err = podfs.Stats(rec.Target); err != nil {
		return err
	}
	rec.State = statePublished
	if err := e.records.write(rec); err != nil {
		return err
	}
	e.reached(StagePublished)
	return nil
}

func (e *Engine) attachAll(ctx context.Context, name string, members []member, coll *loader.Collection) error {
	if err := os.Mkdir(filepath.Join(e.pins(name), "links"), 0o700); err != nil {
		return fmt.Errorf("pins: %w", err)
	}
	for i, m := range members {
		if err := e.attach(ctx, name, i, m, coll); err != nil {
			return fmt.Errorf("program %q: %w", m.program, e.withOwner(err))
		}
	}
	return nil
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
		at, err := e.points.Attach(ctx, *m.point, mode, asked, prog)
		if err != nil {
			return err
		}
		klog.FromContext(ctx).V(4).Info("program attached", "program", m.program, "point", m.hook.String(), "mode", at.Mode)
		return nil
	}
	links, err := hook.Attach(prog, m.hook)
	if err != nil {
		return err
	}
	for j, l := range links {
		err = errors.Join(err, l.Pin(filepath.Join(e.pins(name), "links", fmt.Sprintf("%d-%d-%s", i, j, m.program))), l.Close())
	}
	return err
}

// withOwner adds to "the point is taken" whose program holds it, so that people can talk to each other.
func (e *Engine) withOwner(err error) error {
	var full *dispatcher.FullError
	if !errors.As(err, &full) {
		return err
	}
	rec, rerr := e.records.read(full.Holder.Volume)
	if rerr != nil || rec.Pod.Name == "" {
		return err
	}
	return fmt.Errorf("%w; it belongs to pod %s/%s", err, rec.Pod.Namespace, rec.Pod.Name)
}

// content is what the target will show.
func (v *decided) content(coll *loader.Collection, rec *Record) (podfs.Content, error) {
	types, err := v.object.TypesBTF()
	if err != nil {
		return podfs.Content{}, err
	}
	c := podfs.Content{
		Volume: podfs.Volume{
			Image:    podfs.Image{Reference: rec.Image, Digest: rec.Digest.String()},
			Signer:   rec.Signer,
			Programs: rec.Programs,
		},
		Types: types,
		Group: rec.Group,
	}
	for _, m := range v.object.Maps() {
		if m.Shown {
			c.Maps = append(c.Maps, podfs.Map{Name: m.Name, Map: coll.Maps[m.Name], Key: m.Key, Value: m.Value, Access: m.Access})
		}
	}
	slices.SortFunc(c.Maps, func(a, b podfs.Map) int { return strings.Compare(a.Name, b.Name) })
	return c, nil
}
