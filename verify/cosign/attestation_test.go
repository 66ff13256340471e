// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

const builder = "https://github.com/slsa-framework/slsa-github-generator/.github/workflows/generator_container_slsa3.yml@refs/tags/v2.1.0"

// provenance is what a policy asks for in these tests.
var provenance = v1alpha1.Attestation{PredicateType: cosigntest.SLSA, BuilderID: builder}

func TestKeylessAttestationIsNoSignature(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	for _, predicate := range []string{cosigntest.SLSA, "https://spdx.dev/Document", "https://sigstore.dev/cosign/sign/v1.1", "https://SIGSTORE.dev/cosign/sign/v1"} {
		sig := sigstore.Attest(d, release, predicate, cosigntest.Provenance(builder))
		if _, err := a.Verify(t.Context(), d, sig); !errors.Is(err, verify.ErrNotImageSignature) {
			t.Errorf("%s: got %v, want ErrNotImageSignature", predicate, err)
		}
	}
}

func TestAttestations(t *testing.T) {
	sigstore, stranger := cosigntest.New(), cosigntest.New()
	d, other := digest.FromString("image"), digest.FromString("other")
	evil := cosigntest.Identity{Issuer: release.Issuer, Subject: "https://github.com/evil/x"}
	a := keyless(t, sigstore.TrustedRoot(), exactly(release), provenance)
	if got := a.Attestations(); len(got) != 1 || got[0] != provenance {
		t.Errorf("got attestations %+v", got)
	}
	for _, tc := range []struct {
		name string
		sig  image.Signature
		want error
	}{
		{"the one", sigstore.Attest(d, release, cosigntest.SLSA, cosigntest.Provenance(builder)), nil},
		{"in rekor v2", sigstore.Attest(d, release, cosigntest.SLSA, cosigntest.Provenance(builder), cosigntest.RekorV2(), cosigntest.WithTimestamp()), nil},
		{"another builder", sigstore.Attest(d, release, cosigntest.SLSA, cosigntest.Provenance(builder+"x")), verify.ErrOtherBuilder},
		{"no builder", sigstore.Attest(d, release, cosigntest.SLSA, struct{}{}), verify.ErrOtherBuilder},
		{"builder spelt otherwise", sigstore.Attest(d, release, cosigntest.SLSA, map[string]any{"RunDetails": map[string]any{"Builder": map[string]any{"ID": builder}}}), verify.ErrOtherBuilder},
		{"another predicate", sigstore.Attest(d, release, "https://spdx.dev/Document", cosigntest.Provenance(builder)), verify.ErrOtherStatement},
		{"older predicate", sigstore.Attest(d, release, "https://slsa.dev/provenance/v0.2", cosigntest.Provenance(builder)), verify.ErrOtherStatement},
		{"signature", sigstore.Sign(d, theImage, release, image.FormatBundle), verify.ErrOtherStatement},
		{"signature of a tag", sigstore.Sign(d, theImage, release, image.FormatTag), verify.ErrOtherStatement},
		{"another image", sigstore.Attest(other, release, cosigntest.SLSA, cosigntest.Provenance(builder)), verify.ErrOtherImage},
		{"another signer", sigstore.Attest(d, evil, cosigntest.SLSA, cosigntest.Provenance(builder)), verify.ErrOtherSubject},
		{"another root", stranger.Attest(d, release, cosigntest.SLSA, cosigntest.Provenance(builder)), verify.ErrOtherRoot},
		{"not logged", sigstore.Attest(d, release, cosigntest.SLSA, cosigntest.Provenance(builder), cosigntest.WithoutLog()), verify.ErrNotLogged},
	} {
		if err := a.Attests(t.Context(), d, tc.sig, provenance); !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	anyBuilder := v1alpha1.Attestation{PredicateType: cosigntest.SLSA}
	if err := a.Attests(t.Context(), d, sigstore.Attest(d, release, cosigntest.SLSA, struct{}{}), anyBuilder); err != nil {
		t.Errorf("any builder: %v", err)
	}
	// Two builders in one document: which one a reader sees must not depend on the reader.
	twice := json.RawMessage(`{"runDetails":{"builder":{"id":"evil","id":"` + builder + `"}}}`)
	if err := a.Attests(t.Context(), d, sigstore.Attest(d, release, cosigntest.SLSA, twice), provenance); err == nil {
		t.Error("a provenance that names two builders passed")
	}
}

// What real `cosign attest --key` wrote counts, for the predicate that it has.
func TestAttestationsByKey(t *testing.T) {
	_, stranger := pair(t, "p256")
	for _, name := range []string{"v2-attestation-bundle", "v3-attestation-bundle"} {
		v := readVector(t, name)
		sig := v.signatures(t)[0]
		want := v1alpha1.Attestation{PredicateType: predicateOf(t, sig)}
		if err := authority(t, v.key).Attests(t.Context(), v.image, sig, want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := authority(t, v.key).Attests(t.Context(), v.image, sig, provenance); !errors.Is(err, verify.ErrOtherStatement) {
			t.Errorf("%s, as provenance: got %v", name, err)
		}
		if err := authority(t, v.key).Attests(t.Context(), digest.FromString("other"), sig, want); !errors.Is(err, verify.ErrOtherImage) {
			t.Errorf("%s, another image: got %v", name, err)
		}
		if err := authority(t, stranger).Attests(t.Context(), v.image, sig, want); !errors.Is(err, verify.ErrOtherKey) {
			t.Errorf("%s, another key: got %v", name, err)
		}
	}
}

func predicateOf(t testing.TB, sig image.Signature) string {
	t.Helper()
	var b struct{ DSSEEnvelope struct{ Payload []byte } }
	must(t, json.Unmarshal(sig.Payload, &b))
	var s struct{ PredicateType string }
	must(t, json.Unmarshal(b.DSSEEnvelope.Payload, &s))
	return s.PredicateType
}
