// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"slices"
	"strings"
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

// resolver finds the points of a hook: dispatcher.Resolve, but for dry runs.
type resolver func(context.Context, volume.Hook) ([]dispatcher.Point, error)

func pointsHere(_ context.Context, h volume.Hook) ([]dispatcher.Point, error) {
	return dispatcher.Resolve(h)
}

// decide carries req through the stages that have no effect. The first result is nil unless the second one is Admitted.
func (e *Engine) decide(ctx context.Context, req Request, spec volume.Spec, resolve resolver) (*decided, Decision) {
	d := Decision{Pod: req.Pod, Subject: req.Subject}
	v, err := e.stages(ctx, req, spec, resolve, &d)
	if err != nil {
		var denied *verify.DeniedError
		if errors.As(err, &denied) {
			d.Policy = denied.Policy
		}
		d.Err = err
		return nil, d
	}
	d.Policy, d.Authority, d.Signer = v.grant.Policy.Name, v.grant.Signer.Authority, v.grant.Signer.String()
	return v, d
}

// stages fills in what of d is known before the end.
func (e *Engine) stages(ctx context.Context, req Request, spec volume.Spec, resolve resolver, d *Decision) (*decided, error) {
	ref, err := image.ParseReference(spec.Image)
	if err != nil {
		return nil, err
	}
	d.Image = ref.String()
	policies, err := e.opts.Policies.For(ctx, req.Subject, ref)
	if err != nil {
		return nil, err
	}
	e.reached(StageAuthorized)
	root, err := e.opts.Images.Resolve(ctx, ref, image.PullOptions{Policy: spec.PullPolicy, Keyring: req.Keyring})
	if err != nil {
		return nil, err
	}
	d.Digest = root.Digest
	verify.Trace(ctx, verify.Step{Stage: "image", OK: true, Text: d.Image + " is " + root.Digest.String()})
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
		verify.Trace(ctx, verify.Step{Stage: "object", Text: err.Error()})
		return nil, err
	}
	members, facts, err := place(ctx, object, resolve)
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
func place(ctx context.Context, object *loader.Object, resolve resolver) ([]member, verify.Facts, error) {
	var members []member
	facts := object.Facts()
	facts.Attach = nil
	for _, a := range object.Attach() {
		asked := volume.Interfaces(a.Hook)
		if len(asked) == 0 {
			members = append(members, member{program: a.Program, hook: a.Hook})
			facts.Attach = append(facts.Attach, a)
			continue
		}
		points, err := resolve(ctx, a.Hook)
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
		if !slices.Equal(names, asked) {
			verify.Trace(ctx, verify.Step{Stage: "interface", OK: true, Text: strings.Join(asked, ", ") + " is here " + strings.Join(names, ", ")})
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
		Context:    req.Context,
		ReadOnly:   req.ReadOnly,
		Pod:        req.Pod,
		Created:    time.Now().UTC(),
		Image:      v.root.Reference.String(),
		Digest:     v.root.Digest,
		Object:     v.code.Object().Digest,
		Policy:     v.grant.Policy.Name,
		Authority:  v.grant.Signer.Authority,
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
