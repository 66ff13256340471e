// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

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
	at      dispatcher.Point  // of hooks of interfaces
	point   *dispatcher.Point // nil where the kernel itself shares the hook
}

// basis is what a decision is about where the request does not say it all.
type basis struct {
	// points finds where an attachment is.
	points func(context.Context, volume.Attach) ([]dispatcher.Point, error)
	// digest and object are what is judged, whatever the reference names by now. Empty: what it resolves to.
	digest, object digest.Digest
}

// errOtherObject says that the image, read anew, is not what runs: another version of bpfvol chose that.
var errOtherObject = fmt.Errorf("volume: %w: it runs another object of its image; unpublish it first", ErrConflict)

func (e *Engine) pointsHere(_ context.Context, a volume.Attach) (points []dispatcher.Point, err error) {
	err = e.opts.Host.Do(func() (err error) {
		points, err = dispatcher.Resolve(a.Hook)
		return err
	})
	return points, err
}

// decide carries req through the stages that have no effect. The first result is nil unless the second one is Admitted.
func (e *Engine) decide(ctx context.Context, req Request, spec volume.Spec, on basis) (*decided, Decision) {
	d := Decision{Pod: req.Pod, Subject: req.Subject}
	v, err := e.stages(ctx, req, spec, on, &d)
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
func (e *Engine) stages(ctx context.Context, req Request, spec volume.Spec, on basis, d *Decision) (*decided, error) {
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
	if on.digest != "" {
		ref.Digest = on.digest
	}
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
	if on.object != "" && code.Object().Digest != on.object {
		return nil, errOtherObject
	}
	e.reached(StageOpened)
	object, err := loader.Parse(code, spec)
	if err != nil {
		verify.Trace(ctx, verify.Step{Stage: "object", Text: err.Error()})
		return nil, err
	}
	members, facts, err := place(ctx, object, on)
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
func place(ctx context.Context, object *loader.Object, on basis) ([]member, verify.Facts, error) {
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
		points, err := on.points(ctx, a)
		if err != nil {
			return nil, facts, err
		}
		var names []string
		for _, p := range points {
			m := member{program: a.Program, hook: onInterfaces(a.Hook, []string{p.Interface}), at: p, point: &p}
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
		Persistent: req.Subject.Persistent,
		State:      statePublishing,
		Attributes: req.Attributes,
		Created:    time.Now().UTC(),
		Targets:    []Target{v.target(req)},
		Image:      v.root.Reference.String(),
		Digest:     v.root.Digest,
		Object:     v.code.Object().Digest,
		Programs:   v.programs(),
	}
}

func (v *decided) target(req Request) Target {
	return Target{
		Path:      req.Target,
		Pod:       req.Pod,
		Group:     req.Group,
		Context:   req.Context,
		ReadOnly:  req.ReadOnly,
		Policy:    v.grant.Policy.Name,
		Authority: v.grant.Signer.Authority,
		Signer:    v.grant.Signer.String(),
		State:     statePublishing,
	}
}

func (v *decided) programs() []podfs.Program {
	var out []podfs.Program
	for _, m := range v.members {
		out = append(out, podfs.Program{Name: m.program, Hook: string(m.hook.Kind()), Point: m.hook.String()})
	}
	return out
}
