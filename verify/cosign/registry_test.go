// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

const simpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"

// The tests of this file go the whole way: an image in a registry over HTTP, resolved, its signatures fetched.

type world struct {
	registry *imagetest.Server
	store    *image.Store
}

func newWorld(t testing.TB) world {
	t.Helper()
	r := imagetest.Start(t)
	return world{r, imagetest.Store(t, r.Host)}
}

// push puts one image into the registry; different objects have different digests.
func (w world) push(t testing.TB, repository string, elf []byte) image.Reference {
	t.Helper()
	d := imagetest.PushImage(t, w.registry.Host, repository, "v1", elf)
	return imagetest.Reference(t, w.registry.Host+"/"+repository+"@"+d.String())
}

// sign signs and stores the signature in the registry.
func (w world) sign(t testing.TB, priv []byte, ref image.Reference, f image.Format) {
	t.Helper()
	s, err := cosign.Sign(t.Context(), priv, nil, ref.Digest, ref, f)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.store.AttachSignature(t.Context(), ref, s); err != nil {
		t.Fatal(err)
	}
}

// check resolves and verifies with policies.
func (w world) check(t testing.TB, ref image.Reference, policies ...*verify.Policy) (verify.Signed, error) {
	t.Helper()
	root, err := w.store.Resolve(t.Context(), ref, image.PullOptions{Policy: volume.PullIfNotPresent})
	if err != nil {
		t.Fatal(err)
	}
	return verify.Check(t.Context(), root, policies)
}

// policy admits what any of the keys signed.
func policy(t testing.TB, name string, keys ...[]byte) *verify.Policy {
	t.Helper()
	p, err := verify.KeyPolicy(name, keys[0], cosign.Compile)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys[1:] {
		p.Authorities = append(p.Authorities, authority(t, k))
	}
	return p
}

// wantDenied fails unless err is a denial that holds text.
func wantDenied(t testing.TB, err error, text string) {
	t.Helper()
	if !errors.As(err, new(*verify.DeniedError)) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want a denial with %q", err, text)
	}
}

// pushVector puts a repository as real cosign left it into the registry.
func (w world) pushVector(t testing.TB, name string) (image.Reference, vector) {
	t.Helper()
	v := readVector(t, name)
	repo := imagetest.In(w.registry.Host, "vectors/"+name)
	for _, b := range v.blobs {
		repo.PutBlob(t, "", b, nil)
	}
	for _, ref := range v.order {
		var m struct{ MediaType string }
		if err := json.Unmarshal(v.manifests[ref], &m); err != nil {
			t.Fatal(err)
		}
		repo.PutRaw(t, ref, m.MediaType, v.manifests[ref])
	}
	return imagetest.Reference(t, w.registry.Host+"/vectors/"+name+"@"+v.image.String()), v
}

func TestCosignsSignaturesThroughARegistry(t *testing.T) {
	w := newWorld(t)
	_, stranger := pair(t, "p256")
	for _, name := range slices.Sorted(maps.Keys(written)) {
		ref, v := w.pushVector(t, name)
		s, err := w.check(t, ref, policy(t, "stranger", stranger), policy(t, "acme", stranger, v.key))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		fingerprint, err := cosign.Fingerprint(v.key)
		if err != nil {
			t.Fatal(err)
		}
		want := verify.Signer{Authority: "key[1]", Identity: fingerprint, Format: written[name]}
		if g := s.Grants(); len(g) != 1 || g[0].Policy.Name != "acme" || g[0].Signer != want {
			t.Errorf("%s: got %+v, want acme by %+v", name, g, want)
		}
		_, err = w.check(t, ref, policy(t, "stranger", stranger))
		wantDenied(t, err, `no signature by policy "stranger" (found 1: by another key)`)
	}
	for _, name := range []string{"v2-attestation-bundle", "v3-attestation-bundle"} {
		ref, v := w.pushVector(t, name)
		_, err := w.check(t, ref, policy(t, "acme", v.key))
		wantDenied(t, err, `no signature by policy "acme" (found 1: an attestation and not an image signature)`)
	}
}

func TestOwnSignaturesThroughARegistry(t *testing.T) {
	w := newWorld(t)
	for _, kind := range []string{"p256", "p384", "rsa", "ed25519"} {
		priv, pub := pair(t, kind)
		for _, f := range formats {
			ref := w.push(t, "own/"+kind+"-"+string(f), bpf.Count())
			w.sign(t, priv, ref, f)
			s, err := w.check(t, ref, policy(t, "acme", pub))
			if err != nil {
				t.Errorf("%s %s: %v", kind, f, err)
				continue
			}
			b, err := verify.Open(t.Context(), s)
			if err != nil {
				t.Errorf("%s %s: %v", kind, f, err)
				continue
			}
			if got, want := digest.FromBytes(b.ELF()), digest.FromBytes(bpf.Count()); got != want {
				t.Errorf("%s %s: got object %s, want %s", kind, f, got, want)
			}
		}
	}
}

// get reads a manifest of the registry.
func (w world) get(t testing.TB, repository, ref string) (raw []byte, m ocispec.Manifest) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.registry.Host+"/v2/"+repository+"/"+ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode((*json.RawMessage)(&raw)); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return raw, m
}

func sigTag(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) + ".sig" }

// referrer returns the only manifest that refers to d.
func (w world) referrer(t testing.TB, repository string, d digest.Digest) ocispec.Manifest {
	t.Helper()
	raw, _ := w.get(t, repository, "referrers/"+d.String())
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 1 {
		t.Fatalf("%s has %d referrers, want 1", d, len(index.Manifests))
	}
	_, m := w.get(t, repository, "manifests/"+index.Manifests[0].Digest.String())
	return m
}

// Whoever can push to a repository can copy a good signature to his own image.
func TestTransplantedSignature(t *testing.T) {
	priv, pub := pair(t, "p256")
	acme := policy(t, "acme", pub)
	for _, f := range formats {
		w := newWorld(t)
		good := w.push(t, "acme/x", bpf.Count())
		evil := w.push(t, "acme/x", bpf.Drop())
		w.sign(t, priv, good, f)
		if f == image.FormatTag {
			raw, m := w.get(t, "acme/x", "manifests/"+sigTag(good.Digest))
			imagetest.In(w.registry.Host, "acme/x").PutRaw(t, sigTag(evil.Digest), m.MediaType, raw)
		} else {
			// The subject is rewritten; what was signed still says the good image.
			m := w.referrer(t, "acme/x", good.Digest)
			m.Subject.Digest = evil.Digest
			raw, _ := w.get(t, "acme/x", "manifests/"+evil.Digest.String())
			m.Subject.Size = int64(len(raw))
			imagetest.In(w.registry.Host, "acme/x").PutManifest(t, "", m)
		}
		_, err := w.check(t, evil, acme)
		wantDenied(t, err, `no signature by policy "acme" (found 1: for another image)`)
		if _, err := w.check(t, good, acme); err != nil {
			t.Errorf("%s: the good image: %v", f, err)
		}
	}
}

// A copy of a signed image keeps its signature, which says nothing of where it lies: policies name repositories.
func TestSignedCopyElsewhereIsNotCovered(t *testing.T) {
	priv, pub := pair(t, "p256")
	w := newWorld(t)
	text := "apiVersion: bpfvol.io/v1alpha1\nkind: BytecodePolicy\nmetadata: {name: acme}\nspec:\n  images: ['" + w.registry.Host +
		"/acme/*']\n  subjects: ['*']\n  authorities:\n  - key:\n      data: |\n        " + strings.ReplaceAll(string(pub), "\n", "\n        ") + "\n"
	policies, err := verify.ParsePolicies([]byte(text), "acme.yaml", cosign.Compile)
	if err != nil {
		t.Fatal(err)
	}
	agent := verify.Subject{Namespace: "net", ServiceAccount: "agent"}
	for repository, covered := range map[string]bool{"acme/x": true, "acme/x/y": false, "acmeevil/x": false, "evil/acme/x": false} {
		ref := w.push(t, repository, bpf.Count())
		w.sign(t, priv, ref, image.FormatBundle)
		if _, err := verify.Static(policies).For(t.Context(), agent, ref); (err == nil) != covered {
			t.Errorf("%s: got %v, want covered %t", repository, err, covered)
		}
		// Nor does Check believe a caller that did not ask For.
		if _, err := w.check(t, ref, policies...); (err == nil) != covered {
			t.Errorf("%s: got %v, want admitted %t", repository, err, covered)
		}
	}
}

func TestSecondSignatureCounts(t *testing.T) {
	strangerPriv, _ := pair(t, "p256")
	priv, pub := pair(t, "p256")
	for _, f := range formats {
		w := newWorld(t)
		ref := w.push(t, "acme/x", bpf.Count())
		w.sign(t, strangerPriv, ref, f)
		_, err := w.check(t, ref, policy(t, "acme", pub))
		wantDenied(t, err, "found 1: by another key")
		w.sign(t, priv, ref, f)
		if _, err := w.check(t, ref, policy(t, "acme", pub)); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestMalformedSignatureBesideAGoodOne(t *testing.T) {
	priv, pub := pair(t, "p256")
	w := newWorld(t)
	ref := w.push(t, "acme/x", bpf.Count())
	repo := imagetest.In(w.registry.Host, "acme/x")
	raw, subject := w.get(t, "acme/x", "manifests/"+ref.Digest.String())
	good, err := cosign.Sign(t.Context(), priv, nil, ref.Digest, ref, image.FormatTag)
	if err != nil {
		t.Fatal(err)
	}
	panics := maps.Clone(good.Annotations)
	panics["dev.sigstore.cosign/bundle"] = rekorAnnotation("1")
	tagged := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: repo.PutEmpty(t), Layers: []ocispec.Descriptor{
		repo.PutBlob(t, simpleSigning, good.Payload, panics),
		repo.PutBlob(t, simpleSigning, []byte("{}"), nil),
	}}
	repo.PutManifest(t, sigTag(ref.Digest), tagged)
	for _, bundle := range []string{"", "{}", "null", strings.Repeat("[", 10000)} {
		const mediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"
		repo.PutManifest(t, "", ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest, ArtifactType: mediaType, Config: repo.PutEmpty(t),
			Subject: &ocispec.Descriptor{MediaType: subject.MediaType, Digest: ref.Digest, Size: int64(len(raw))},
			Layers:  []ocispec.Descriptor{repo.PutBlob(t, mediaType, []byte(bundle), nil)},
		})
	}
	_, err = w.check(t, ref, policy(t, "acme", pub))
	wantDenied(t, err, `no signature by policy "acme" (found 6: unreadable)`)
	w.sign(t, priv, ref, image.FormatBundle)
	if _, err := w.check(t, ref, policy(t, "acme", pub)); err != nil {
		t.Error(err)
	}
}

func TestUnsignedImage(t *testing.T) {
	_, pub := pair(t, "p256")
	w := newWorld(t)
	ref := w.push(t, "acme/x", bpf.Count())
	_, err := w.check(t, ref, policy(t, "acme", pub))
	wantDenied(t, err, `is not signed, and policy "acme" wants a signature`)
	if _, err := w.check(t, ref, verify.UnsignedPolicy()); err != nil {
		t.Error(err)
	}
}

func TestRegistryErrorIsNotUnsigned(t *testing.T) {
	priv, pub := pair(t, "p256")
	for _, part := range []string{".sig", "/referrers/"} {
		w := newWorld(t)
		ref := w.push(t, "acme/x", bpf.Count())
		w.sign(t, priv, ref, image.FormatBundle)
		w.registry.Intercept(imagetest.Status(part, http.StatusInternalServerError))
		_, err := w.check(t, ref, policy(t, "acme", pub))
		if !errors.Is(err, image.ErrUnavailable) || errors.As(err, new(*verify.DeniedError)) {
			t.Errorf("%s answers 500: got %v, want ErrUnavailable", part, err)
		}
		w.registry.Intercept(nil)
		if _, err := w.check(t, ref, policy(t, "acme", pub)); err != nil {
			t.Errorf("%s: afterwards: %v", part, err)
		}
	}
}

func TestRegistryWithoutReferrersAPI(t *testing.T) {
	priv, pub := pair(t, "p256")
	for _, f := range formats {
		w := newWorld(t)
		w.registry.Intercept(imagetest.NoReferrers())
		ref := w.push(t, "acme/x", bpf.Count())
		w.sign(t, priv, ref, f)
		if _, err := w.check(t, ref, policy(t, "acme", pub)); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// Policies are asked again for what is in the cache: nothing remembers an earlier yes.
func TestKeyRemovedFromPolicyEndsWhatTheCacheHolds(t *testing.T) {
	priv, pub := pair(t, "p256")
	_, next := pair(t, "p256")
	w := newWorld(t)
	ref := w.push(t, "acme/x", bpf.Count())
	w.sign(t, priv, ref, image.FormatBundle)
	if _, err := w.check(t, ref, policy(t, "acme", pub)); err != nil {
		t.Fatal(err)
	}
	_, err := w.check(t, ref, policy(t, "acme", next))
	wantDenied(t, err, "by another key")
	w.registry.Requests()
	if _, err := w.check(t, ref, policy(t, "acme", pub)); err != nil {
		t.Error(err)
	}
	if r := w.registry.Requests(); len(r) != 0 {
		t.Errorf("a warm check asked the registry: %q", r)
	}
}
