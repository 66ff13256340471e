// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

// maxMaterial bounds a signature whoever fetched it: what it says and its annotations together.
const maxMaterial = 1 << 20

// Compile is the verify.Compiler of sigstore's authorities. A file that a trusted root is read from need not be there
// yet, or be good: that is the node's state, which verify.Policy.Err tells, and no mistake of the policy.
func Compile(spec v1alpha1.Authority, dir string) (verify.Authority, error) {
	var w way
	var err error
	switch {
	case spec.Key != nil:
		w, err = compileKey(spec.Key)
	case spec.Keyless != nil:
		w, err = compileKeyless(spec.Keyless, spec.TrustedRoot, dir)
	default:
		err = errors.New("has neither key nor keyless")
	}
	if err != nil {
		return nil, err
	}
	return &authority{way: w, attestations: spec.Attestations}, nil
}

// authority is a key or an identity, and what else it has to say of an image.
type authority struct {
	way
	attestations []v1alpha1.Attestation
}

// way is how a signer is known. Both methods return who signed, in words, and only if d is what was signed.
type way interface {
	// Name implements verify.Authority.
	Name() string
	// payload checks a simple signing payload: the signature is an annotation of the layer that holds it.
	payload(ctx context.Context, d digest.Digest, sig image.Signature) (identity string, err error)
	// bundle checks a sigstore bundle: an in-toto statement about the digest in a DSSE envelope.
	bundle(ctx context.Context, d digest.Digest, sig image.Signature) (s statement, identity string, err error)
}

// Verify implements verify.Authority.
func (a *authority) Verify(ctx context.Context, d digest.Digest, sig image.Signature) (signer verify.Signer, err error) {
	defer guard(sig, &err)
	if err := check(d, sig); err != nil {
		return verify.Signer{}, err
	}
	var identity string
	switch sig.Format {
	case image.FormatTag, image.FormatReferrer:
		identity, err = a.payload(ctx, d, sig)
	case image.FormatBundle:
		var s statement
		if s, identity, err = a.bundle(ctx, d, sig); err == nil {
			err = s.approves()
		}
	default:
		err = errors.New("unknown format")
	}
	if err != nil {
		return verify.Signer{}, err
	}
	return verify.Signer{Authority: a.Name(), Identity: identity, Format: sig.Format}, nil
}

// Attestations implements verify.Authority.
func (a *authority) Attestations() []v1alpha1.Attestation { return a.attestations }

// Attests implements verify.Authority. Attestations under cosign's .att tag are not looked for: v3 writes bundles, and so
// does v2 with --new-bundle-format.
func (a *authority) Attests(ctx context.Context, d digest.Digest, sig image.Signature, want v1alpha1.Attestation) (err error) {
	defer guard(sig, &err)
	if err := check(d, sig); err != nil {
		return err
	}
	if sig.Format != image.FormatBundle {
		return fmt.Errorf("%w: is no bundle", verify.ErrOtherStatement)
	}
	s, _, err := a.bundle(ctx, d, sig)
	if err != nil {
		return err
	}
	return s.is(want)
}

// Err says what is wrong with the file that the authority reads.
func (a *authority) Err() error {
	if reads, ok := a.way.(interface{ Err() error }); ok {
		return reads.Err()
	}
	return nil
}

// guard names the signature in an error, and makes one of a panic. The libraries verify on our own goroutine, so what
// they let slip ends here.
func guard(sig image.Signature, err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic while verifying: %.100q", fmt.Sprint(r))
	}
	if *err != nil {
		*err = fmt.Errorf("%.20s signature: %w", sig.Format, *err)
	}
}

// check bounds what the libraries get to see.
func check(d digest.Digest, sig image.Signature) error {
	size := len(sig.Payload)
	for k, v := range sig.Annotations {
		size += len(k) + len(v)
	}
	if size > maxMaterial {
		return fmt.Errorf("has %d bytes; the limit is %d", size, maxMaterial)
	}
	if d.Algorithm() != digest.SHA256 || d.Validate() != nil {
		return fmt.Errorf("image digest %.100q is not SHA-256", d)
	}
	return nil
}
