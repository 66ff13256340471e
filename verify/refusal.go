// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
)

// refusal collects why a policy's authorities refused the signatures.
type refusal struct {
	policy     *Policy
	signatures int

	seen    [len(kinds)]string // in words, of the first of each kind
	lacking *lacking           // what the first good signature lacked
}

// lacking is an attestation that a good signature is not accompanied by.
type lacking struct {
	want         v1alpha1.Attestation
	otherBuilder bool // there is one of another builder
}

// kinds of refusal, the closest to a signature that counts first. A nil error is any that is not listed.
var kinds = [...]struct {
	err  error
	what string
}{
	{ErrOtherImage, ErrOtherImage.Error()},
	{ErrNotImageSignature, "an attestation and " + ErrNotImageSignature.Error()},
	{ErrNoTime, ErrNoTime.Error()},
	{ErrExpired, ErrExpired.Error()},
	{ErrNotLogged, ErrNotLogged.Error()},
	{ErrNoSCT, ErrNoSCT.Error()},
	{ErrOtherSubject, ErrOtherSubject.Error()},
	{ErrOtherIssuer, ErrOtherIssuer.Error()},
	{ErrOtherRoot, ErrOtherRoot.Error()},
	{ErrOtherKey, ErrOtherKey.Error()},
	{ErrNoCertificate, ErrNoCertificate.Error()},
	{ErrNoTrustedRoot, ErrNoTrustedRoot.Error()},
	{nil, "unreadable"},
}

// ask tries every signature with every authority of the policy and returns who made the first that counts; nil and no
// error if none does.
func (r *refusal) ask(ctx context.Context, d digest.Digest, sigs []image.Signature) (*Signer, error) {
	for n, a := range r.policy.Authorities {
		name := fmt.Sprintf("%s[%d]", a.Name(), n)
		for i, sig := range sigs {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			signer, err := a.Verify(ctx, d, sig)
			r.trace(ctx, "signature", name, i, sig, err, "by "+signer.String())
			if err != nil {
				r.add(err)
				continue
			}
			complete, err := r.attested(ctx, d, sigs, a, name)
			if err != nil {
				return nil, err
			}
			if complete {
				signer.Authority = name
				return &signer, nil
			}
			break // another signature of the authority would lack the same
		}
	}
	return nil, nil
}

// attested reports whether every attestation that the authority wants is among the signatures.
func (r *refusal) attested(ctx context.Context, d digest.Digest, sigs []image.Signature, a Authority, name string) (bool, error) {
	for _, want := range a.Attestations() {
		found := false
		l := lacking{want: want}
		for i, sig := range sigs {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			err := a.Attests(ctx, d, sig, want)
			r.trace(ctx, "attestation", name, i, sig, err, fmt.Sprintf("states %.100q", want.PredicateType))
			if found = err == nil; found {
				break
			}
			l.otherBuilder = l.otherBuilder || errors.Is(err, ErrOtherBuilder)
		}
		if !found {
			if r.lacking == nil {
				r.lacking = &l
			}
			return false, nil
		}
	}
	return true, nil
}

// trace tells what one authority says of one signature.
func (r *refusal) trace(ctx context.Context, stage, authority string, i int, sig image.Signature, err error, good string) {
	text := good
	if err != nil {
		text = err.Error()
	}
	Trace(ctx, Step{
		Stage: stage, Policy: r.policy.Name, OK: err == nil,
		Text: fmt.Sprintf("%s: signature %d of %d (%s): %s", authority, i+1, r.signatures, sig.Format, text),
	})
}

func (r *refusal) add(err error) {
	for i, k := range kinds {
		if k.err != nil && !errors.Is(err, k.err) {
			continue
		}
		if r.seen[i] == "" {
			r.seen[i] = k.what
			if other := (*OtherIdentityError)(nil); errors.As(err, &other) {
				r.seen[i] = other.Error()
			}
		}
		return
	}
}

// rank orders refusals by how close they came: the lower, the closer.
func (r *refusal) rank() int {
	if r.lacking != nil {
		return -1
	}
	for i, what := range r.seen {
		if what != "" {
			return i
		}
	}
	return len(r.seen)
}

// denied says what the policy misses. Several authorities count a signature each; the text says what kinds of refusal
// there were, and counts signatures.
func (r *refusal) denied(img string) error {
	e := &DeniedError{Image: img, Policy: r.policy.Name}
	switch {
	case r.signatures == 0:
		e.Cause = fmt.Sprintf("is not signed, and policy %q wants a signature", r.policy.Name)
		e.Fix = "sign it " + r.with()
		return e
	case r.lacking != nil:
		e.Cause = fmt.Sprintf("is signed, but policy %q wants an attestation, too: %s", r.policy.Name, r.lacking)
		e.Fix = "attest it " + r.with()
		return e
	}
	var why []string
	for _, what := range r.seen {
		if what != "" {
			why = append(why, what)
		}
	}
	e.Cause = fmt.Sprintf("no signature by policy %q (found %d: %s)", r.policy.Name, r.signatures, strings.Join(why, ", "))
	e.Fix = "sign it " + r.with() + " or ask an admin to add yours"
	return e
}

// with says how the policy wants to be satisfied.
func (r *refusal) with() string {
	keys, identities := false, false
	for _, a := range r.policy.Authorities {
		keyless := a.Name() == "keyless"
		keys, identities = keys || !keyless, identities || keyless
	}
	switch {
	case keys && identities:
		return "with a key or as an identity of the policy"
	case identities:
		return "as an identity of the policy"
	}
	return "with a key of the policy"
}

func (l *lacking) String() string {
	s := fmt.Sprintf("%.100q", l.want.PredicateType)
	if l.want.BuilderID != "" {
		s += fmt.Sprintf(" of builder %.100q", l.want.BuilderID)
	}
	if l.otherBuilder {
		s += " (found one of another builder)"
	}
	return s
}
