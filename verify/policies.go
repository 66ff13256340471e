// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"

	"github.com/bpfvol/bpfvol/internal/image"
)

// ErrUnavailable means that the policies, or who may use them, are not known now. Nothing runs until they are.
var ErrUnavailable = errors.New("unavailable")

// Policies knows which policies a subject may use for an image.
type Policies interface {
	// For returns the policies that cover the image's repository and name the subject: never none without an error,
	// which is a *DeniedError where policy is the reason, and wraps ErrUnavailable where who knows cannot be asked.
	For(ctx context.Context, s Subject, ref image.Reference) ([]*Policy, error)
}

// Static is a fixed set of policies.
type Static []*Policy

// For implements Policies.
func (ps Static) For(ctx context.Context, s Subject, ref image.Reference) ([]*Policy, error) {
	candidates, err := Candidates(ctx, ps, ref)
	if err != nil {
		return nil, err
	}
	var usable []*Policy
	for _, p := range candidates {
		tell := Step{Stage: "subject", Policy: p.Name, OK: matchSubject(p.Subjects, s)}
		if tell.OK {
			usable = append(usable, p)
			tell.Text = fmt.Sprintf("names %q (subjects: %s)", s, some(p.Subjects))
		} else {
			tell.Text = fmt.Sprintf("does not name %q (subjects: %s)", s, some(p.Subjects))
		}
		Trace(ctx, tell)
	}
	if len(usable) > 0 {
		return usable, nil
	}
	closest := candidates[0]
	return nil, Denied(ref, closest.Name, notNamed(closest, s), fixSubject(s))
}

// Candidates returns the policies that cover the image's repository, whoever asks: never none without an error, which is
// a *DeniedError that names the nearest one.
func Candidates(ctx context.Context, policies []*Policy, ref image.Reference) ([]*Policy, error) {
	var candidates []*Policy
	for _, p := range policies {
		if p.traceCovers(ctx, ref) {
			candidates = append(candidates, p)
		}
	}
	if len(candidates) > 0 {
		return candidates, nil
	}
	e := noneCovers(policies, ref)
	Trace(ctx, Step{Stage: "policy", Text: e.Cause})
	return nil, e
}

// traceCovers is covers, told.
func (p *Policy) traceCovers(ctx context.Context, ref image.Reference) bool {
	for _, g := range p.Images {
		if g.Match(ref) {
			Trace(ctx, Step{Stage: "policy", Policy: p.Name, OK: true, Text: fmt.Sprintf("covers %s by %q", repository(ref), g)})
			return true
		}
	}
	if tracing(ctx) {
		globs := make([]string, len(p.Images))
		for i, g := range p.Images {
			globs[i] = g.String()
		}
		Trace(ctx, Step{Stage: "policy", Policy: p.Name, Text: fmt.Sprintf("does not cover %s (images: %s)", repository(ref), some(globs))})
	}
	return false
}

func notNamed(p *Policy, s Subject) string {
	if !s.namable() {
		return fmt.Sprintf("policy %q does not name subject %q, as namespace %q means users of the command line", p.Name, s, localNamespace)
	}
	return fmt.Sprintf("policy %q does not name subject %q", p.Name, s)
}

func fixSubject(s Subject) string {
	if !s.namable() {
		return "use another namespace"
	}
	return "ask an admin to add it to the policy's subjects"
}

// noneCovers is the denial where no policy is about the image.
func noneCovers(ps Static, ref image.Reference) *DeniedError {
	e := &DeniedError{
		Image: display(ref, ""),
		Cause: "no policy is in force",
		Fix:   fmt.Sprintf("an admin must add a BytecodePolicy whose images include %q", repository(ref)),
	}
	if len(ps) > 0 {
		e.Cause = "no policy covers it"
		if p, g := ps.nearest(ref); p != nil {
			e.Policy = p.Name
			e.Cause = fmt.Sprintf("no policy covers it (the nearest, %q, is for %q)", p.Name, g)
		}
	}
	return e
}

// nearest finds the policy whose glob shares the most leading elements with ref, nil if none shares the host.
func (ps Static) nearest(ref image.Reference) (*Policy, Glob) {
	var best *Policy
	var glob Glob
	most := 0
	for _, p := range ps {
		for _, g := range p.Images {
			if n := g.near(ref); n > most {
				best, glob, most = p, g, n
			}
		}
	}
	return best, glob
}

// Union offers the policies of every part, in order; `bpfvol run --key` adds one to those of the directory.
type Union []Policies

// For implements Policies. An error other than a denial ends it.
func (u Union) For(ctx context.Context, s Subject, ref image.Reference) ([]*Policy, error) {
	var usable []*Policy
	var denied *DeniedError
	for _, part := range u {
		ps, err := part.For(ctx, s, ref)
		var d *DeniedError
		if errors.As(err, &d) {
			if denied == nil || denied.Policy == "" {
				denied = d
			}
		} else if err != nil {
			return nil, err
		}
		usable = append(usable, ps...)
	}
	if len(usable) > 0 {
		return usable, nil
	}
	if denied == nil {
		return Static(nil).For(ctx, s, ref)
	}
	return nil, denied
}
