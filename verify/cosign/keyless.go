// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

// keylessWay is whoever an OIDC issuer vouched for, in a certificate of Fulcio's kind. A signature needs all of: a chain to
// the trusted root that was valid at the time of signing, the receipt of a certificate log (SCT), an entry of this very
// signature in a transparency log, and a time that the log or a timestamp authority signed. All of it comes with the
// signature, so nobody is asked.
type keylessWay struct {
	identity sgverify.CertificateIdentity
	root     trustedRoot
}

func compileKeyless(spec *v1alpha1.Keyless, where *v1alpha1.TrustedRoot, dir string) (*keylessWay, error) {
	id, err := compileIdentity(spec)
	if err != nil {
		return nil, fmt.Errorf("keyless.%w", err)
	}
	root, err := openTrustedRoot(where, dir)
	if err != nil {
		return nil, fmt.Errorf("trustedRoot%w", err)
	}
	return &keylessWay{identity: id, root: root}, nil
}

// Name implements verify.Authority.
func (*keylessWay) Name() string { return "keyless" }

// Err says what is wrong with the trusted root.
func (w *keylessWay) Err() error { return w.root.Err() }

func (w *keylessWay) bundle(ctx context.Context, d digest.Digest, sig image.Signature) (statement, string, error) {
	b, err := readBundle(sig, bound)
	if err != nil {
		return statement{}, "", err
	}
	artifact, err := about(d)
	if err != nil {
		return statement{}, "", err
	}
	t, err := w.trust(ctx)
	if err != nil {
		return statement{}, "", err
	}
	res, err := w.verify(t, b, artifact)
	if err != nil {
		return statement{}, "", err
	}
	s, err := newStatement(b, res)
	return s, identityOf(*res.Signature.Certificate), err
}

// payload goes through sigstore-go as well, by way of a bundle of version 0.1. cosign/v2 would have to be trusted to bind
// the log's entry to this signature (CVE-2026-22703), to look at the validity of the whole chain (CVE-2026-24122 is not
// fixed in v2), not to panic (cosign#4648) and to stay offline; sigstore-go does each by construction, and so both
// kinds of signature are held to one measure.
func (w *keylessWay) payload(ctx context.Context, d digest.Digest, sig image.Signature) (string, error) {
	t, err := w.trust(ctx)
	if err != nil {
		return "", err
	}
	e, err := payloadEntity(sig, t)
	if err != nil {
		return "", err
	}
	res, err := w.verify(t, e, sgverify.WithArtifact(bytes.NewReader(sig.Payload)))
	if err != nil {
		return "", err
	}
	return identityOf(*res.Signature.Certificate), checkClaim(sig.Payload, d)
}

func (w *keylessWay) trust(ctx context.Context) (*trust, error) {
	t, err := w.root.now(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", verify.ErrNoTrustedRoot, err)
	}
	return t, nil
}

// verify asks for everything at once, and on a refusal for what is wrong.
func (w *keylessWay) verify(t *trust, e sgverify.SignedEntity, artifact sgverify.ArtifactPolicyOption) (*sgverify.VerificationResult, error) {
	res, err := t.verifier.Verify(e, sgverify.NewPolicy(artifact, sgverify.WithCertificateIdentity(w.identity)))
	if err != nil {
		return nil, w.why(t, e, err)
	}
	if res.Signature == nil || res.Signature.Certificate == nil {
		return nil, errors.New("verified without a certificate")
	}
	return res, nil
}
