// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/internal/image"
)

// Check collects every policy of policies that the image satisfies; policies are those that Policies.For returned.
// It does no I/O beyond asking root for the image's signatures. The error is a *DeniedError where none is satisfied.
func Check(ctx context.Context, root *image.Root, policies []*Policy) (Signed, error) {
	return check(ctx, root, root.Reference, root.Digest, policies)
}

// check tries the signatures at hand first; only where none of them will do, the registry is asked once for newer
// ones.
func check(ctx context.Context, src source, ref image.Reference, d digest.Digest, policies []*Policy) (Signed, error) {
	s := Signed{root: src, ref: ref, digest: d}
	policies = slices.DeleteFunc(slices.Clone(policies), func(p *Policy) bool { return !p.covers(ref) })
	var unsigned []Grant
	var asking []*Policy // for a signature
	for _, p := range policies {
		if p.Unsigned {
			unsigned = append(unsigned, Grant{Policy: p})
		}
		if len(p.Authorities) > 0 {
			asking = append(asking, p)
		}
	}
	if len(asking) > 0 {
		var closest refusal
		for _, fresh := range []bool{false, true} {
			sigs, err := src.Signatures(ctx, fresh)
			if fresh && errors.Is(err, image.ErrNotCached) {
				break // the registry may not be asked: what is at hand decides
			}
			if err != nil {
				return Signed{}, fmt.Errorf("image %s: signatures: %w", display(ref, d), err)
			}
			s.grants, closest, err = grants(ctx, d, sigs, asking)
			if err != nil {
				return Signed{}, err
			}
			if len(s.grants)+len(unsigned) > 0 {
				break
			}
			if !fresh {
				Trace(ctx, Step{Stage: "signature", Text: fmt.Sprintf("%d at hand, none will do: the registry is asked for newer ones", len(sigs))})
			}
		}
		if len(s.grants)+len(unsigned) == 0 {
			return Signed{}, closest.denied(display(ref, d))
		}
	}
	s.grants = append(s.grants, unsigned...)
	if len(s.grants) == 0 {
		return Signed{}, nothingAdmits(display(ref, d), policies)
	}
	return s, nil
}

// nothingAdmits is the denial where no policy asks for a signature and none does without.
func nothingAdmits(img string, policies []*Policy) error {
	e := &DeniedError{Image: img, Cause: "no policy covers it", Fix: "ask an admin for a policy"}
	if len(policies) > 0 {
		e.Policy = policies[0].Name
		e.Cause = fmt.Sprintf("policy %q has no authorities and no \"unsigned: true\", so nothing satisfies it", e.Policy)
		e.Fix = "ask an admin to add a key to the policy"
	}
	return e
}

// grants tries every signature with every authority. It stops at a policy's first match.
func grants(ctx context.Context, d digest.Digest, sigs []image.Signature, policies []*Policy) ([]Grant, refusal, error) {
	var out []Grant
	var closest refusal
	for i, p := range policies {
		r := refusal{policy: p, signatures: len(sigs)}
		signer, err := r.ask(ctx, d, sigs)
		switch {
		case err != nil:
			return nil, refusal{}, err
		case signer != nil:
			out = append(out, Grant{Policy: p, Signer: *signer})
		case i == 0 || r.rank() < closest.rank():
			closest = r
		}
	}
	return out, closest, nil
}
