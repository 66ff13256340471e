// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
		granted := false
	policy:
		for n, a := range p.Authorities {
			for _, sig := range sigs {
				if err := ctx.Err(); err != nil {
					return nil, refusal{}, err
				}
				signer, err := a.Verify(ctx, d, sig)
				if err != nil {
					r.add(err)
					continue
				}
				signer.Authority = fmt.Sprintf("%s[%d]", a.Name(), n)
				out = append(out, Grant{Policy: p, Signer: signer})
				granted = true
				break policy
			}
		}
		if !granted && (i == 0 || r.rank() > closest.rank()) {
			closest = r
		}
	}
	return out, closest, nil
}

// refusal counts why a policy's authorities refused the signatures.
type refusal struct {
	policy     *Policy
	signatures int

	otherImage, notSignature, otherKey, unreadable int
}

func (r *refusal) add(err error) {
	switch {
	case errors.Is(err, ErrOtherImage):
		r.otherImage++
	case errors.Is(err, ErrNotImageSignature):
		r.notSignature++
	case errors.Is(err, ErrOtherKey):
		r.otherKey++
	default:
		r.unreadable++
	}
}

// rank orders refusals by how close they came.
func (r *refusal) rank() int {
	switch {
	case r.otherImage > 0:
		return 4
	case r.notSignature > 0:
		return 3
	case r.otherKey > 0:
		return 2
	case r.unreadable > 0:
		return 1
	}
	return 0
}

// denied says which policy came closest. Several authorities count a signature each; the text says what kinds of
// refusal there were, and counts signatures.
func (r *refusal) denied(img string) error {
	e := &DeniedError{Image: img, Policy: r.policy.Name}
	if r.signatures == 0 {
		e.Cause = fmt.Sprintf("is not signed, and policy %q wants a signature", r.policy.Name)
		e.Fix = "sign it with a key of the policy"
		return e
	}
	var why []string
	for _, c := range []struct {
		n    int
		what string
	}{
		{r.otherImage, ErrOtherImage.Error()},
		{r.notSignature, "an attestation and " + ErrNotImageSignature.Error()},
		{r.otherKey, ErrOtherKey.Error()},
		{r.unreadable, "unreadable"},
	} {
		if c.n > 0 {
			why = append(why, c.what)
		}
	}
	e.Cause = fmt.Sprintf("no signature by policy %q (found %d: %s)", r.policy.Name, r.signatures, strings.Join(why, ", "))
	e.Fix = "sign it with a key of the policy or ask an admin to add yours"
	return e
}
