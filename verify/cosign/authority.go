// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

// maxMaterial bounds a signature whoever fetched it.
const maxMaterial = 1 << 20

// Compile is the verify.Compiler of sigstore's authorities.
func Compile(spec v1alpha1.Authority, _ string) (verify.Authority, error) {
	switch {
	case spec.Key != nil:
		k, err := parsePublicKey([]byte(spec.Key.Data))
		if err != nil {
			return nil, fmt.Errorf("key.data: %w", err)
		}
		return newKeyAuthority(k)
	case spec.Keyless != nil:
		return nil, errors.New("keyless: not supported yet by this version; use a key")
	}
	return nil, errors.New("has neither key nor keyless")
}

// keyAuthority is whoever holds one private key. The transparency log is not asked for: a key in a policy is trust
// enough, and nodes without a way out can verify.
type keyAuthority struct {
	key     *publicKey
	bundles *sgverify.Verifier
}

func (*keyAuthority) Name() string { return "key" }

// Verify implements verify.Authority.
func (a *keyAuthority) Verify(ctx context.Context, d digest.Digest, sig image.Signature) (signer verify.Signer, err error) {
	// The libraries verify on this goroutine, so what they let slip is caught here.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s signature: panic while verifying: %.100q", sig.Format, fmt.Sprint(r))
		}
	}()
	if len(sig.Payload) > maxMaterial {
		return verify.Signer{}, fmt.Errorf("%s signature: %d bytes; the limit is %d", sig.Format, len(sig.Payload), maxMaterial)
	}
	if d.Algorithm() != digest.SHA256 || d.Validate() != nil {
		return verify.Signer{}, fmt.Errorf("%s signature: image digest %.100q is not SHA-256", sig.Format, d)
	}
	switch sig.Format {
	case image.FormatTag, image.FormatReferrer:
		err = a.verifyPayload(ctx, d, sig)
	case image.FormatBundle:
		err = a.verifyBundle(d, sig)
	default:
		err = errors.New("unknown format")
	}
	if err != nil {
		return verify.Signer{}, fmt.Errorf("%s signature: %w", sig.Format, err)
	}
	return verify.Signer{Authority: a.Name(), Identity: a.key.fingerprint, Format: sig.Format}, nil
}
