// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
)

// fakeStates is a fakeKey that wants attestations, which are "<key> states <digest> <predicate> <builder>".
type fakeStates struct {
	fakeKey
	want []v1alpha1.Attestation
}

func (s fakeStates) Attestations() []v1alpha1.Attestation { return s.want }

func (s fakeStates) Attests(_ context.Context, d digest.Digest, sig image.Signature, want v1alpha1.Attestation) error {
	words := strings.Fields(string(sig.Payload))
	switch {
	case len(words) != 5 || words[3] != want.PredicateType:
		return ErrOtherStatement
	case words[0] != string(s.fakeKey):
		return ErrOtherKey
	case words[2] != d.String():
		return ErrOtherImage
	case want.BuilderID != "" && words[4] != want.BuilderID:
		return ErrOtherBuilder
	}
	return nil
}

// fakeKeyless refuses everything, in the way it is told.
type fakeKeyless struct {
	fakeKey
	why error
}

func (fakeKeyless) Name() string { return "keyless" }

func (k fakeKeyless) Verify(context.Context, digest.Digest, image.Signature) (Signer, error) {
	return Signer{}, fmt.Errorf("tag signature: %w: details that differ", k.why)
}

func TestAttestationsMustBeThere(t *testing.T) {
	const sbom, slsa = "https://spdx.dev/Document", "https://slsa.dev/provenance/v1"
	states := func(key string, d digest.Digest, predicate, builder string) string {
		return fmt.Sprintf("%s states %s %s %s", key, d, predicate, builder)
	}
	p := anything("acme")
	p.Authorities = []Authority{fakeStates{"k", []v1alpha1.Attestation{{PredicateType: sbom}, {PredicateType: slsa, BuilderID: "good"}}}}
	name := "image ghcr.io/acme/x@" + d1.String() + ": "
	const fix = "; attest it with a key of the policy"
	for _, tc := range []struct {
		name string
		sigs []string
		want string // "": admitted
	}{
		{"both", []string{states("k", d1, sbom, "x"), signs("k", d1), states("k", d1, slsa, "good")}, ""},
		{"the second of two", []string{signs("k", d1), states("k", d1, sbom, "x"), states("k", d1, slsa, "bad"), states("k", d1, slsa, "good")}, ""},
		{"none", []string{signs("k", d1)}, name + `is signed, but policy "acme" wants an attestation, too: "https://spdx.dev/Document"` + fix},
		{"one", []string{signs("k", d1), states("k", d1, sbom, "x")}, name + `is signed, but policy "acme" wants an attestation, too: "https://slsa.dev/provenance/v1" of builder "good"` + fix},
		{"of another builder", []string{signs("k", d1), states("k", d1, sbom, "x"), states("k", d1, slsa, "bad")}, name + `is signed, but policy "acme" wants an attestation, too: "https://slsa.dev/provenance/v1" of builder "good" (found one of another builder)` + fix},
		{"by another key", []string{signs("k", d1), states("z", d1, sbom, "x")}, name + `is signed, but policy "acme" wants an attestation, too: "https://spdx.dev/Document"` + fix},
		{"for another image", []string{signs("k", d1), states("k", d2, sbom, "x")}, name + `is signed, but policy "acme" wants an attestation, too: "https://spdx.dev/Document"` + fix},
		{"but no signature", []string{states("k", d1, sbom, "x"), states("k", d1, slsa, "good")}, name + `no signature by policy "far" (found 2: unreadable); sign it with a key of the policy or ask an admin to add yours`},
	} {
		_, err := check(t.Context(), &fakeRoot{cached: tc.sigs, fresh: tc.sigs}, acmeX, d1, []*Policy{keyed("far", "z"), p})
		if tc.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		wantDenied(t, err)
		if err != nil && err.Error() != tc.want {
			t.Errorf("%s: got  %q\nwant %q", tc.name, err, tc.want)
		}
	}
}

// An attestation that came after the signature is found as a signature would be.
func TestLackOfAttestationAsksTheRegistryAgain(t *testing.T) {
	p := anything("acme")
	p.Authorities = []Authority{fakeStates{"k", []v1alpha1.Attestation{{PredicateType: "sbom"}}}}
	root := &fakeRoot{cached: []string{signs("k", d1)}, fresh: []string{signs("k", d1), "k states " + d1.String() + " sbom x"}}
	if _, err := check(t.Context(), root, acmeX, d1, []*Policy{p}); err != nil {
		t.Error(err)
	}
}

func TestDenialSaysWhatIsWrongWithKeylessSignatures(t *testing.T) {
	const fix = "; sign it as an identity of the policy or ask an admin to add yours"
	for why, want := range map[error]string{
		ErrOtherRoot:    "by a certificate of another root",
		ErrOtherIssuer:  "by another issuer",
		ErrOtherSubject: "by another subject",
		&OtherIdentityError{ErrOtherSubject, "https://evil.test/\n" + strings.Repeat("x", 1000)}: `by another subject ("https://evil.test/\n` + strings.Repeat("x", 101) + `")`,
		ErrNoSCT:           "by a certificate that is in no certificate log",
		ErrNotLogged:       "not in the transparency log",
		ErrNoTime:          "without a trusted timestamp",
		ErrExpired:         "made outside the validity of its certificate",
		ErrNoCertificate:   "by a key and without a certificate",
		ErrNoTrustedRoot:   "not checked, because the policy's trusted root cannot be used",
		errors.New("junk"): "unreadable",
	} {
		p := anything("acme")
		p.Authorities = []Authority{fakeKeyless{why: why}}
		_, err := check(t.Context(), &fakeRoot{cached: []string{"s"}, fresh: []string{"s"}}, acmeX, d1, []*Policy{p})
		wantDenied(t, err, `: no signature by policy "acme" (found 1: `+want+")"+fix)
		p.Authorities = append(p.Authorities, fakeKey("k"))
		_, err = check(t.Context(), &fakeRoot{}, acmeX, d1, []*Policy{p})
		wantDenied(t, err, "sign it with a key or as an identity of the policy")
	}
}

// A policy whose signature fails for want of a proof is closer than one that a stranger signed for.
func TestClosestPolicyIsTheOneThatAlmostAdmitted(t *testing.T) {
	of := func(name string, why error) *Policy {
		p := anything(name)
		p.Authorities = []Authority{fakeKeyless{why: why}}
		return p
	}
	order := []error{ErrOtherImage, ErrNotImageSignature, ErrNoTime, ErrExpired, ErrNotLogged, ErrNoSCT, ErrOtherSubject, ErrOtherIssuer, ErrOtherRoot, ErrNoTrustedRoot}
	for i := range len(order) - 1 {
		_, err := check(t.Context(), &fakeRoot{cached: []string{"s"}, fresh: []string{"s"}}, acmeX, d1, []*Policy{of("far", order[i+1]), of("near", order[i])})
		wantDenied(t, err, `policy "near"`)
	}
}

func TestTraceTellsEachAnswer(t *testing.T) {
	p := anything("acme")
	p.Authorities = []Authority{fakeKey("z"), fakeStates{"k", []v1alpha1.Attestation{{PredicateType: "sbom"}}}}
	var steps []string
	ctx := WithTrace(t.Context(), func(s Step) {
		steps = append(steps, fmt.Sprintf("%s %s %t %s", s.Stage, s.Policy, s.OK, s.Text))
	})
	sigs := []string{signs("k", d1), "k states " + d1.String() + " sbom x"}
	if _, err := check(ctx, &fakeRoot{cached: sigs[:1], fresh: sigs}, acmeX, d1, []*Policy{p}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"signature acme false key[0]: signature 1 of 1 (tag): by another key",
		"signature acme true key[1]: signature 1 of 1 (tag): by k",
		"attestation acme false key[1]: signature 1 of 1 (tag): another kind of statement",
		"signature  false 1 at hand, none will do: the registry is asked for newer ones",
		"signature acme false key[0]: signature 1 of 2 (tag): by another key",
		"signature acme false key[0]: signature 2 of 2 (tag): unreadable",
		"signature acme true key[1]: signature 1 of 2 (tag): by k",
		"attestation acme false key[1]: signature 1 of 2 (tag): another kind of statement",
		`attestation acme true key[1]: signature 2 of 2 (tag): states "sbom"`,
	}
	if strings.Join(steps, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(steps, "\n"), strings.Join(want, "\n"))
	}
}

func TestAttestationsThatAreRefused(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`[{predicateType: ""}]`, `attestations[0].predicateType: is missing; write https://slsa.dev/provenance/v1`},
		{`[{predicateType: x}, {builderID: y}]`, `attestations[1].predicateType: is missing`},
		{`[{predicateType: "https://spdx.dev/Document", builderID: y}]`, `attestations[0].builderID: only a predicateType of https://slsa.dev/provenance/v1 names a builder`},
		{`[{predicateType: "` + strings.Repeat("x", 513) + `"}]`, `attestations[0].predicateType: has 513 bytes; the limit is 512`},
		{`[{predicateType: "https://slsa.dev/provenance/v1", builderID: "` + strings.Repeat("x", 513) + `"}]`, `attestations[0].builderID: has 513 bytes; the limit is 512`},
	} {
		text := "{apiVersion: bpfvol.io/v1alpha1, kind: BytecodePolicy, metadata: {name: p}, spec: {images: [\"**\"], authorities: [{key: {data: k}, attestations: " + tc.in + "}]}}"
		if _, err := ParsePolicies([]byte(text), "p.yaml", fakeCompile); err == nil || !strings.Contains(err.Error(), "spec.authorities[0]: "+tc.want) {
			t.Errorf("%s: got %v\nwant %q", tc.in, err, tc.want)
		}
	}
}
