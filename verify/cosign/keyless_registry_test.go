// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

// attach stores signatures in the registry.
func (w world) attach(t testing.TB, ref image.Reference, sigs ...image.Signature) {
	t.Helper()
	for _, s := range sigs {
		must(t, w.store.AttachSignature(t.Context(), ref, s))
	}
}

// identities admits what any of the identities signed.
func identities(t testing.TB, name string, trustedRoot []byte, attestations []v1alpha1.Attestation, ids ...*v1alpha1.Keyless) *verify.Policy {
	t.Helper()
	_, pub := pair(t, "p256")
	p, err := verify.KeyPolicy(name, pub, cosign.Compile)
	must(t, err)
	p.Authorities = nil
	for _, id := range ids {
		p.Authorities = append(p.Authorities, keyless(t, trustedRoot, id, attestations...))
	}
	return p
}

func TestKeylessThroughARegistry(t *testing.T) {
	w := newWorld(t)
	sigstore, stranger := cosigntest.New(), cosigntest.New()
	someone := cosigntest.Identity{Issuer: release.Issuer, Subject: "someone@acme.test"}
	acme := identities(t, "acme", sigstore.TrustedRoot(), nil, exactly(someone), exactly(release))
	for i, way := range ways {
		ref := w.push(t, "keyless/way-"+string(rune('a'+i)), elfOf(i))
		_, err := w.check(t, ref, acme)
		wantDenied(t, err, `is not signed, and policy "acme" wants a signature; sign it as an identity of the policy`)
		w.attach(t, ref, stranger.Sign(ref.Digest, ref, release, way.format, way.opts...))
		_, err = w.check(t, ref, acme)
		wantDenied(t, err, `no signature by policy "acme" (found 1: by a certificate of another root); sign it as an identity of the policy or ask an admin to add yours`)
		w.attach(t, ref, sigstore.Sign(ref.Digest, ref, release, way.format, way.opts...))
		s, err := w.check(t, ref, acme)
		if err != nil {
			t.Errorf("%s: %v", way.name, err)
			continue
		}
		want := verify.Signer{Authority: "keyless[1]", Format: way.format, Identity: release.Subject + " (issuer " + release.Issuer + ")"}
		if g := s.Grants(); len(g) != 1 || g[0].Signer != want {
			t.Errorf("%s: got %+v, want %+v", way.name, g, want)
		}
	}
}

// elfOf makes bytes that differ from image to image; nothing here reads them as an object.
func elfOf(i int) []byte { return []byte{0x7f, 'E', 'L', 'F', byte(i)} }

func TestKeylessTransplants(t *testing.T) {
	w := newWorld(t)
	sigstore := cosigntest.New()
	acme := identities(t, "acme", sigstore.TrustedRoot(), []v1alpha1.Attestation{{PredicateType: cosigntest.SLSA}}, exactly(release))
	for i, way := range ways {
		good, evil := w.push(t, "a/x", elfOf(2*i)), w.push(t, "a/x", elfOf(2*i+1))
		moved := sigstore.Sign(good.Digest, good, release, way.format, way.opts...)
		w.attach(t, evil, moved)
		_, err := w.check(t, evil, acme)
		wantDenied(t, err, `no signature by policy "acme" (found 1: for another image)`)
		// Nor does the attestation of another image complete a signature.
		w.attach(t, evil, sigstore.Sign(evil.Digest, evil, release, way.format, way.opts...), sigstore.Attest(good.Digest, release, cosigntest.SLSA, struct{}{}))
		_, err = w.check(t, evil, acme)
		wantDenied(t, err, `is signed, but policy "acme" wants an attestation, too: "https://slsa.dev/provenance/v1"; attest it as an identity of the policy`)
	}
}

func TestAttestationThroughARegistry(t *testing.T) {
	w := newWorld(t)
	sigstore := cosigntest.New()
	acme := identities(t, "acme", sigstore.TrustedRoot(), []v1alpha1.Attestation{provenance}, exactly(release))
	for i, f := range formats {
		ref := w.push(t, "a/x", elfOf(i))
		w.attach(t, ref, sigstore.Attest(ref.Digest, release, cosigntest.SLSA, cosigntest.Provenance(builder)))
		_, err := w.check(t, ref, acme)
		wantDenied(t, err, `no signature by policy "acme" (found 1: an attestation and not an image signature)`)
		w.attach(t, ref, sigstore.Sign(ref.Digest, ref, release, f))
		if _, err := w.check(t, ref, acme); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
	ref := w.push(t, "a/x", elfOf(len(formats)))
	w.attach(t, ref, sigstore.Sign(ref.Digest, ref, release, image.FormatTag), sigstore.Attest(ref.Digest, release, cosigntest.SLSA, cosigntest.Provenance("https://evil.test")))
	_, err := w.check(t, ref, acme)
	wantDenied(t, err, `is signed, but policy "acme" wants an attestation, too: "https://slsa.dev/provenance/v1" of builder "https://github.com/slsa-framework/`)
	wantDenied(t, err, `(found one of another builder); attest it as an identity of the policy`)
}

// Each thing that can be wrong has its own words, and a good signature beside it counts all the same.
func TestKeylessDenialsThroughARegistry(t *testing.T) {
	w := newWorld(t)
	sigstore, stranger := cosigntest.New(), cosigntest.New()
	acme := identities(t, "acme", sigstore.TrustedRoot(), nil, exactly(release))
	priv, _ := pair(t, "p256")
	d := func(ref image.Reference) digest.Digest { return ref.Digest }
	for i, tc := range []struct {
		make func(image.Reference) image.Signature
		want string
	}{
		{func(r image.Reference) image.Signature {
			return stranger.Sign(d(r), r, release, image.FormatBundle)
		}, "by a certificate of another root"},
		{func(r image.Reference) image.Signature {
			return sigstore.Sign(d(r), r, cosigntest.Identity{Issuer: "https://evil.test", Subject: release.Subject}, image.FormatBundle)
		}, `by another issuer ("https://evil.test")`},
		{func(r image.Reference) image.Signature {
			return sigstore.Sign(d(r), r, cosigntest.Identity{Issuer: release.Issuer, Subject: "https://evil.test/x"}, image.FormatBundle)
		}, `by another subject ("https://evil.test/x")`},
		{func(r image.Reference) image.Signature {
			return sigstore.Sign(d(r), r, release, image.FormatBundle, cosigntest.WithoutSCT())
		}, "by a certificate that is in no certificate log"},
		{func(r image.Reference) image.Signature {
			return sigstore.Sign(d(r), r, release, image.FormatBundle, cosigntest.WithoutLog())
		}, "not in the transparency log"},
		{func(r image.Reference) image.Signature {
			return sigstore.Sign(d(r), r, release, image.FormatBundle, cosigntest.RekorV2())
		}, "without a trusted timestamp"},
		{func(r image.Reference) image.Signature {
			return sigstore.Sign(d(r), r, release, image.FormatBundle, cosigntest.StampedAt(time.Now().Add(-2*time.Hour)))
		}, "made outside the validity of its certificate"},
		{func(r image.Reference) image.Signature {
			return sign(t, priv, d(r), image.FormatBundle)
		}, "by a key and without a certificate"},
	} {
		ref := w.push(t, "a/x", elfOf(i))
		w.attach(t, ref, tc.make(ref))
		_, err := w.check(t, ref, acme)
		wantDenied(t, err, `: no signature by policy "acme" (found 1: `+tc.want+`); sign it as an identity of the policy or ask an admin to add yours`)
		w.attach(t, ref, sigstore.Sign(ref.Digest, ref, release, image.FormatBundle))
		if _, err := w.check(t, ref, acme); err != nil {
			t.Errorf("%s, and a good one: %v", tc.want, err)
		}
	}
}

// The root is rotated between two publishes of one image, whose signatures are in the cache.
func TestRotatedRootEndsWhatTheCacheHolds(t *testing.T) {
	w := newWorld(t)
	old, next := cosigntest.New(), cosigntest.New()
	path := filepath.Join(t.TempDir(), "trusted_root.json")
	write(t, path, old.TrustedRoot())
	acme := identities(t, "acme", old.TrustedRoot(), nil)
	acme.Authorities = []verify.Authority{fileAuthority(t, "", path)}
	ref := w.push(t, "a/x", elfOf(0))
	w.attach(t, ref, old.Sign(ref.Digest, ref, release, image.FormatBundle))
	if _, err := w.check(t, ref, acme); err != nil {
		t.Fatal(err)
	}
	write(t, path, next.TrustedRoot())
	_, err := w.check(t, ref, acme)
	wantDenied(t, err, "by a certificate of another root")
	w.attach(t, ref, next.Sign(ref.Digest, ref, release, image.FormatBundle))
	if _, err := w.check(t, ref, acme); err != nil {
		t.Error(err)
	}
}
