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

// verifyPayload checks a simple signing payload: the signature is an annotation of the layer that holds it.
func (a *keyAuthority) verifyPayload(ctx context.Context, d digest.Digest, sig image.Signature) error {
	h, err := v1.NewHash(d.String())
	if err != nil {
		return err
	}
	s, err := ociSignature(sig)
	if err != nil {
		return err
	}
	_, err = cosign.VerifyImageSignature(ctx, s, h, &cosign.CheckOpts{
		SigVerifier:   a.key.verifier,
		IgnoreTlog:    true,
		Offline:       true,
		ClaimVerifier: checkClaim, // without one the digest is not compared at all
	})
	if err == nil || errors.Is(err, verify.ErrOtherImage) || errors.Is(err, verify.ErrNotImageSignature) {
		return err
	}
	return fmt.Errorf("%w: %.200q", verify.ErrOtherKey, err.Error())
}

// checkClaim binds the payload to the digest, once its signature holds. cosign compares the digest alone; the type tells an approval to run
// from other documents of the same shape.
func checkClaim(s oci.Signature, h v1.Hash, _ map[string]any) error {
	raw, err := s.Payload()
	if err != nil {
		return err
	}
	var p payload.SimpleContainerImage
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("%w: payload: %.100q", verify.ErrNotImageSignature, err.Error())
	}
	if p.Critical.Type != payload.CosignSignatureType {
		return fmt.Errorf("%w: payload of type %.100q", verify.ErrNotImageSignature, p.Critical.Type)
	}
	if err := cosign.SimpleClaimVerifier(s, h, nil); err != nil {
		return fmt.Errorf("%w: %.100q", verify.ErrOtherImage, p.Critical.Image.DockerManifestDigest)
	}
	return nil
}

// ociSignature gives the bytes the form that cosign takes.
func ociSignature(sig image.Signature) (oci.Signature, error) {
	b64 := sig.Annotations[static.SignatureAnnotationKey]
	if raw, err := base64.StdEncoding.DecodeString(b64); err != nil || len(raw) == 0 {
		return nil, fmt.Errorf("annotation %s: is not a signature in base64", static.SignatureAnnotationKey)
	}
	if err := checkRekorBundle(sig.Annotations[static.BundleAnnotationKey]); err != nil {
		return nil, err
	}
	return static.NewSignature(sig.Payload, b64)
}

// checkRekorBundle refuses a transparency log entry that would panic cosign/v2 v2.6.5, which asserts that the body
// is a string (fixed in v3 by cosign#4648). Keys need no log entry, but what comes with a malformed one is not
// trusted either.
func checkRekorBundle(annotation string) error {
	if annotation == "" {
		return nil
	}
	var b bundle.RekorBundle
	if err := json.Unmarshal([]byte(annotation), &b); err != nil {
		return fmt.Errorf("annotation %s: %.100q", static.BundleAnnotationKey, err.Error())
	}
	if _, ok := b.Payload.Body.(string); !ok {
		return fmt.Errorf("annotation %s: body is not a string", static.BundleAnnotationKey)
	}
	return nil
}
