// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"time"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/loader"
	"github.com/bpfvol/bpfvol/verify"
)

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
	members, facts, err := place(object)
	if err != nil {
		return nil, err
	}
	grant, err := signed.Permit(ctx, facts)
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
			m := member{program: a.Program, hook: onInterfaces(a.Hook, []string{p.Interface}), point: &p}
			if a.Hook.Kind() == volume.KindNetkit {
				m.point = nil
			}
			members = append(members, m)
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
	case *volume.Netkit:
		on := *h
		on.Interfaces = names
		return &on
	}
	return h
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
