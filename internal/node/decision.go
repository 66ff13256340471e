// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"slices"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
)

// Decision is the answer to who may run what, before anything of it is done. It holds no secret.
type Decision struct {
	Pod     Pod
	Subject verify.Subject
	// Image is the reference as asked, "" where it could not be read; Digest what it resolved to, "" where it was not asked.
	Image  string
	Digest digest.Digest
	// Policy admitted the volume, by the signature of Signer, which satisfies the policy's Authority. Of a refusal, Policy is
	// the one that came closest, and the others are empty.
	Policy    string
	Authority string
	Signer    string
	// Err is nil where the volume was admitted.
	Err error
}

// Result is how a decision ended.
type Result string

const (
	Admitted Result = "admitted"
	// Refused means that policy is the reason, or the list of registries: trying again changes nothing.
	Refused Result = "refused"
	// Failed means that nothing was decided: the registry is down, the image is no object, an attribute names what is not
	// there.
	Failed Result = "failed"
)

// Result tells refusals from failures.
func (d Decision) Result() Result {
	switch {
	case d.Err == nil:
		return Admitted
	case errors.As(d.Err, new(*verify.DeniedError)), errors.Is(d.Err, image.ErrHostNotAllowed):
		return Refused
	}
	return Failed
}

// tell writes a decision to the log, always with the same keys, and to who asked by Options.Decided.
func (e *Engine) tell(ctx context.Context, d Decision) {
	reason := ""
	if d.Err != nil {
		reason = d.Err.Error()
	}
	klog.FromContext(ctx).Info("volume decided", "result", d.Result(), "pod", klog.KRef(d.Pod.Namespace, d.Pod.Name), "podUID", d.Pod.UID,
		"serviceAccount", d.Subject.String(), "persistent", d.Subject.Persistent, "image", d.Image, "digest", d.Digest,
		"policy", d.Policy, "authority", d.Authority, "signer", d.Signer, "reason", reason)
	if e.opts.Decided != nil {
		e.opts.Decided(ctx, d)
	}
}

// DryRun decides about req as Publish would, by the same code, and does nothing: neither Open nor Recover is needed before
// it, nor root. verify.WithTrace makes ctx tell each step. An interface that is not here is judged by the name that was
// asked for.
func (e *Engine) DryRun(ctx context.Context, req Request) Decision {
	spec, err := volume.Parse(req.Attributes)
	if err != nil {
		return Decision{Pod: req.Pod, Subject: req.Subject, Err: err}
	}
	_, d := e.decide(ctx, req, spec, basis{points: pointsOrNames})
	return d
}

// pointsOrNames is dispatcher.Resolve for a machine that need not be the node.
func pointsOrNames(ctx context.Context, a volume.Attach) ([]dispatcher.Point, error) {
	var all []dispatcher.Point
	for _, name := range volume.Interfaces(a.Hook) {
		points, err := dispatcher.Resolve(onInterfaces(a.Hook, []string{name}))
		if err != nil {
			verify.Trace(ctx, verify.Step{Stage: "interface", Text: err.Error() + "; judged by its name"})
			points = []dispatcher.Point{{Interface: name}}
		}
		for _, p := range points {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all, nil
}
