// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/cosign/bundle"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore/pkg/signature/payload"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

func (w *keyWay) payload(ctx context.Context, d digest.Digest, sig image.Signature) (string, error) {
	h, err := v1.NewHash(d.String())
	if err != nil {
		return "", err
	}
	s, err := ociSignature(sig)
	if err != nil {
		return "", err
	}
	_, err = cosign.VerifyImageSignature(ctx, s, h, &cosign.CheckOpts{
		SigVerifier: w.key.verifier,
		IgnoreTlog:  true,
		Offline:     true,
		ClaimVerifier: func(s oci.Signature, _ v1.Hash, _ map[string]any) error { // without one the digest is not compared at all
			raw, err := s.Payload()
			if err != nil {
				return err
			}
			return checkClaim(raw, d)
		},
	})
	if err == nil || errors.Is(err, verify.ErrOtherImage) || errors.Is(err, verify.ErrNotImageSignature) {
		return w.key.fingerprint, err
	}
	return "", fmt.Errorf("%w: %.200q", verify.ErrOtherKey, err.Error())
}

// checkClaim binds a payload to the digest, once its signature holds. The type tells an approval to run from other
// documents of the same shape.
func checkClaim(raw []byte, d digest.Digest) error {
	var p payload.SimpleContainerImage
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("%w: payload: %.100q", verify.ErrNotImageSignature, err.Error())
	}
	if p.Critical.Type != payload.CosignSignatureType {
		return fmt.Errorf("%w: payload of type %.100q", verify.ErrNotImageSignature, p.Critical.Type)
	}
	if got := p.Critical.Image.DockerManifestDigest; got != d.String() {
		return fmt.Errorf("%w: %.100q", verify.ErrOtherImage, got)
	}
	return nil
}

// ociSignature gives the bytes the form that cosign takes.
func ociSignature(sig image.Signature) (oci.Signature, error) {
	b64 := sig.Annotations[static.SignatureAnnotationKey]
	if raw, err := base64.StdEncoding.DecodeString(b64); err != nil || len(raw) == 0 {
		return nil, fmt.Errorf("annotation %s: is not a signature in base64", static.SignatureAnnotationKey)
	}
	// Keys need no log entry, but what comes with a malformed one is not trusted either.
	if entry := sig.Annotations[static.BundleAnnotationKey]; entry != "" {
		if _, err := readRekorBundle(entry); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", static.BundleAnnotationKey, err)
		}
	}
	return static.NewSignature(sig.Payload, b64)
}

// readRekorBundle refuses a transparency log entry that would panic cosign/v2 v2.6.5, which asserts that the body is a
// string (fixed in v3 by cosign#4648).
func readRekorBundle(annotation string) (bundle.RekorBundle, error) {
	var b bundle.RekorBundle
	if err := json.Unmarshal([]byte(annotation), &b); err != nil {
		return b, fmt.Errorf("%.100q", err.Error())
	}
	if _, ok := b.Payload.Body.(string); !ok {
		return b, errors.New("body is not a string")
	}
	return b, nil
}
