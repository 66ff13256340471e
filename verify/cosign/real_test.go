// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/testing/data"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

// The provenance of sigstore 2.0.0 on npm, made by GitHub in 2023 and held against the public sigstore's trusted root. It is
// about no image, which is all that is wrong with it: certificate, SCT, log entry, time and identity are good.
func TestProvenanceOfThePublicSigstore(t *testing.T) {
	raw, err := data.Bundle(t, "sigstore.js@2.0.0-provenance.sigstore.json").MarshalJSON()
	must(t, err)
	trustedRoot, err := data.TrustedRoot(t, "public-good.json").MarshalJSON()
	must(t, err)
	sig := image.Signature{Format: image.FormatBundle, Payload: raw}
	id := func(subject string) *v1alpha1.Keyless {
		return &v1alpha1.Keyless{Issuer: "https://token.actions.githubusercontent.com", SubjectRegexp: subject}
	}
	for subject, want := range map[string]error{
		`https://github\.com/sigstore/sigstore-js/\.github/workflows/.*`: verify.ErrOtherImage,
		`https://github\.com/sigstore/sigstore`:                          verify.ErrOtherSubject,
	} {
		a := keyless(t, trustedRoot, id(subject))
		if _, err := a.Verify(t.Context(), digest.FromString("image"), sig); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", subject, err, want)
		}
	}
	a := keyless(t, cosigntest.New().TrustedRoot(), id(`https://github\.com/sigstore/sigstore-js/.*`))
	if _, err := a.Verify(t.Context(), digest.FromString("image"), sig); !errors.Is(err, verify.ErrOtherRoot) {
		t.Errorf("another root: got %v", err)
	}
}
