// SPDX-License-Identifier: Apache-2.0

package cosigntest_test

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

// What the package makes is what sigstore's own verifier takes, with everything required.
func TestSigstoreGoVerifiesBundles(t *testing.T) {
	sigstore := cosigntest.New()
	tr, err := root.NewTrustedRootFromJSON(sigstore.TrustedRoot())
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.NewVerifier(tr, verify.WithSignedCertificateTimestamps(1), verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1))
	if err != nil {
		t.Fatal(err)
	}
	id, err := verify.NewShortCertificateIdentity("https://issuer.test", "", "me@acme.test", "")
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("image")
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string][]cosigntest.Option{
		"rekor v1":                {},
		"rekor v1 and timestamp":  {cosigntest.WithTimestamp()},
		"rekor v1, proof alone":   {cosigntest.WithoutPromise(), cosigntest.WithTimestamp()},
		"rekor v2":                {cosigntest.RekorV2(), cosigntest.WithTimestamp()},
		"rekor v2, half year ago": {cosigntest.RekorV2(), cosigntest.WithTimestamp(), cosigntest.At(time.Now().AddDate(0, -6, 0))},
	} {
		s := sigstore.Sign(d, image.Reference{}, cosigntest.Identity{Issuer: "https://issuer.test", Subject: "me@acme.test"}, image.FormatBundle, opts...)
		var b bundle.Bundle
		if err := b.UnmarshalJSON(s.Payload); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := v.Verify(&b, verify.NewPolicy(verify.WithArtifactDigest("sha256", sum), verify.WithCertificateIdentity(id))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
