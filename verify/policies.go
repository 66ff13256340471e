// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"

	"github.com/bpfvol/bpfvol/internal/image"
)

// Policies knows which policies a subject may use for an image.
type Policies interface {
	// For returns the policies that cover the image's repository and name the subject: never none without an error,
	// which is a *DeniedError where policy is the reason.
	For(ctx context.Context, s Subject, ref image.Reference) ([]*Policy, error)
}

// Static is a fixed set of policies.
type Static []*Policy

// For implements Policies.
func (ps Static) For(_ context.Context, s Subject, ref image.Reference) ([]*Policy, error) {
	var usable []*Policy
	var closest *Policy // covers the image, but not for this subject
	for _, p := range ps {
		switch {
		case !p.covers(ref):
		case matchSubject(p.Subjects, s):
			usable = append(usable, p)
		case closest == nil:
			closest = p
		}
	}
	switch {
	case len(usable) > 0:
		return usable, nil
	case closest != nil:
		return nil, &DeniedError{
			Image: display(ref, ""), Policy: closest.Name,
			Cause: fmt.Sprintf("policy %q does not name subject %q", closest.Name, s),
			Fix:   "ask an admin to add it to the policy's subjects",
		}
	}
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
	return nil, e
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
