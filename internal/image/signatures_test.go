// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

const (
	simpleSigning   = "application/vnd.dev.cosign.simplesigning.v1+json"
	bundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

// three is one signature of each format.
func three() []image.Signature {
	return []image.Signature{
		{Format: image.FormatTag, Payload: []byte(`{"tag":1}`), Annotations: map[string]string{"dev.cosignproject.cosign/signature": "dGFn"}},
		{Format: image.FormatReferrer, Payload: []byte(`{"referrer":1}`), Annotations: map[string]string{"dev.cosignproject.cosign/signature": "cmVm"}},
		{Format: image.FormatBundle, Payload: []byte(`{"bundle":1}`)},
	}
}

// texts is what signatures say, in an order of its own.
func texts(sigs []image.Signature) []string {
	var out []string
	for _, s := range sigs {
		out = append(out, string(s.Format)+" "+string(s.Payload)+" "+s.Annotations["dev.cosignproject.cosign/signature"])
	}
	slices.Sort(out)
	return out
}

func wantSignatures(t testing.TB, root *image.Root, fresh bool, want []image.Signature) {
	t.Helper()
	got, err := root.Signatures(t.Context(), fresh)
	if err != nil {
		t.Errorf("fresh=%t: %v", fresh, err)
		return
	}
	if !slices.Equal(texts(got), texts(want)) {
		t.Errorf("fresh=%t: got %q, want %q", fresh, texts(got), texts(want))
	}
}

// signed pushes an image with one signature of each format.
func signed(t testing.TB, reg *imagetest.Server) image.Reference {
	t.Helper()
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	at := ref
	at.Digest = imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	store := imagetest.Store(t, reg.Host)
	for _, s := range three() {
		if err := store.AttachSignature(t.Context(), at, s); err != nil {
			t.Fatal(err)
		}
	}
	return ref
}

func TestSignaturesOfEachFormatAreFound(t *testing.T) {
	for name, hook := range map[string]imagetest.Hook{"API": nil, "TagSchema": imagetest.NoReferrers()} {
		t.Run(name, func(t *testing.T) {
			reg := imagetest.Start(t)
			reg.Intercept(hook)
			ref := signed(t, reg)
			store := imagetest.Store(t, reg.Host)
			root, err := resolve(t, store, ref, image.PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			wantSignatures(t, root, false, three())
			reg.Requests()
			wantSignatures(t, root, false, three())
			if got := reg.Requests(); len(got) > 0 {
				t.Errorf("the second look made requests: %q", got)
			}
			wantSignatures(t, root, true, three())
			if got := reg.Requests(); len(got) == 0 {
				t.Error("a fresh look made no request")
			}
			reg.Intercept(imagetest.Drop(""))
			never, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullNever})
			if err != nil {
				t.Fatal(err)
			}
			wantSignatures(t, never, false, three())
			_, err = never.Signatures(t.Context(), true)
			wantError(t, err, image.ErrNotCached, "")
		})
	}
}

// Whoever pulls the signature tag as if it were an image has not made the node look for signatures.
func TestPulledSignatureTagIsNoLookup(t *testing.T) {
	reg := imagetest.Start(t)
	ref := signed(t, reg)
	store := imagetest.Store(t, reg.Host)
	root, err := resolve(t, store, ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tag := ref
	tag.Tag = "sha256-" + root.Digest.Encoded() + ".sig"
	wantError(t, open(t, store, tag), image.ErrNoObject, "")
	wantSignatures(t, root, false, three())
	never, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullNever})
	if err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, never, false, three())
}

func TestPullAlwaysLooksForSignaturesEachTime(t *testing.T) {
	reg := imagetest.Start(t)
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	at := ref
	at.Digest = imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	store, admin := imagetest.Store(t, reg.Host), imagetest.Store(t, reg.Host)
	always, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullAlways})
	if err != nil {
		t.Fatal(err)
	}
	ifNotPresent, err := resolve(t, store, ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, always, false, nil)
	for i, s := range three() {
		if err := admin.AttachSignature(t.Context(), at, s); err != nil {
			t.Fatal(err)
		}
		wantSignatures(t, ifNotPresent, false, three()[:i])
		wantSignatures(t, always, false, three()[:i+1])
		wantSignatures(t, ifNotPresent, false, three()[:i+1])
	}
	// Taken away again, they are gone from the cache as well.
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, ".sig") || strings.Contains(r.URL.Path, "/referrers/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	if always, err = resolve(t, store, ref, image.PullOptions{Policy: volume.PullAlways}); err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, always, false, nil)
	wantSignatures(t, ifNotPresent, false, nil)
}

// Whatever goes wrong while looking is an error: never "unsigned", and nothing of it is remembered.
func TestSignatureLookupFails(t *testing.T) {
	reg := imagetest.Start(t)
	ref := signed(t, reg)
	d := imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	tag := "/manifests/sha256-" + d.Encoded() + ".sig"
	for _, part := range []string{tag, "/referrers/", "/manifests/sha256:", "/blobs/"} {
		for name, tt := range map[string]struct {
			hook imagetest.Hook
			want error
		}{
			"500":       {imagetest.Status(part, 500), image.ErrUnavailable},
			"401":       {imagetest.Status(part, 401), image.ErrUnauthenticated},
			"429":       {imagetest.Status(part, 429), image.ErrUnavailable},
			"hang":      {imagetest.Hang(part), image.ErrUnavailable},
			"dropped":   {imagetest.Drop(part), image.ErrUnavailable},
			"truncated": {imagetest.Truncate(part), image.ErrUnavailable},
			"flipped":   {imagetest.Flip(part), image.ErrDigestMismatch},
		} {
			if part == "/referrers/" && name == "flipped" {
				continue // an answer of the referrers API has no digest: what it lists has
			}
			t.Run(strings.Trim(strings.ReplaceAll(part, d.Encoded(), ""), "/")+"/"+name, func(t *testing.T) {
				t.Parallel()
				reg := imagetest.Start(t)
				ref := signed(t, reg)
				store := imagetest.OpenStore(t, image.Options{Registries: imagetest.Registries(t, reg.Host), Limits: image.Limits{Timeout: time.Second}})
				root, err := resolve(t, store, ref, image.PullOptions{})
				if err != nil {
					t.Fatal(err)
				}
				reg.Intercept(tt.hook)
				got, err := root.Signatures(t.Context(), false)
				wantError(t, err, tt.want, "")
				if len(got) > 0 {
					t.Errorf("an error, and signatures: %v", got)
				}
				reg.Intercept(nil)
				wantSignatures(t, root, false, three())
			})
		}
	}
	store := imagetest.Store(t, reg.Host)
	root, err := resolve(t, store, ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// A token server that answers 404 has not said that there is no signature.
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/token" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+reg.Host+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	_, err = root.Signatures(t.Context(), false)
	wantError(t, err, image.ErrUnauthenticated, "")
}

// Someone may push anything beside an image. It costs little, and hides no signature.
func TestRubbishBesideSignatures(t *testing.T) {
	reg := imagetest.Start(t)
	ref := signed(t, reg)
	root, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := imagetest.In(reg.Host, "acme/count")
	subject := &ocispec.Descriptor{MediaType: root.MediaType, Digest: root.Digest, Size: root.Size}
	other := &ocispec.Descriptor{MediaType: root.MediaType, Digest: digest.FromString("other"), Size: 5}
	refer := func(artifactType string, subject *ocispec.Descriptor, layers ...ocispec.Descriptor) {
		r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Config: r.PutEmpty(t), Layers: layers, Subject: subject})
	}
	gone := ocispec.Descriptor{MediaType: "application/spdx+json", Digest: digest.FromString("gone"), Size: 5 << 30}
	refer("application/spdx+json", subject, gone)
	refer("", subject, gone)
	refer(bundleMediaType, subject, r.PutBlob(t, "text/plain", []byte("x"), nil))
	refer(bundleMediaType, subject, r.PutBlob(t, bundleMediaType, make([]byte, 5<<20), nil))
	refer(bundleMediaType, other, r.PutBlob(t, bundleMediaType, []byte(`{"of":"another"}`), nil))
	wantSignatures(t, root, true, three())

	for i := range 30 {
		refer("application/spdx+json", subject, r.PutBlob(t, "application/spdx+json", []byte(fmt.Sprint(i)), nil))
	}
	reg.Requests()
	wantSignatures(t, root, true, three())
	if got := reg.Requests(); len(got) > 16 {
		t.Errorf("%d requests for three signatures", len(got))
	}
}

func TestTooManyReferrersAreAnError(t *testing.T) {
	reg := imagetest.Start(t)
	d := imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	root, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := imagetest.In(reg.Host, "acme/count")
	config := r.PutEmpty(t)
	for i := range 1000 {
		r.PutManifest(t, "", ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest, ArtifactType: bundleMediaType, Config: config,
			Subject:     &ocispec.Descriptor{MediaType: root.MediaType, Digest: d, Size: root.Size},
			Annotations: map[string]string{"n": fmt.Sprint(i)},
		})
	}
	reg.Requests()
	_, err = root.Signatures(t.Context(), false)
	wantError(t, err, image.ErrTooLarge, "more than 256 referrers")
	if got := reg.Requests(); len(got) > 2 {
		t.Errorf("%d requests were made", len(got))
	}
}

// Who may push beside an image may push 64 manifests of 64 signatures of a megabyte each. No more than a few of them are
// read, and none in place of a signature that is as small as signatures are.
func TestLargeSignaturesTakeNoRoomFromSmallOnes(t *testing.T) {
	reg := imagetest.Start(t)
	d := imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	store := imagetest.Store(t, reg.Host)
	root, err := resolve(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v1"), image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := imagetest.In(reg.Host, "acme/count")
	large := r.PutBlob(t, bundleMediaType, make([]byte, 1<<20), nil)
	push := func(layers ...ocispec.Descriptor) {
		r.PutManifest(t, "", ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest, ArtifactType: bundleMediaType, Config: r.PutEmpty(t), Layers: layers,
			Subject: &ocispec.Descriptor{MediaType: root.MediaType, Digest: d, Size: root.Size},
		})
	}
	for i := range 20 {
		push(large, large, r.PutBlob(t, bundleMediaType, []byte(fmt.Sprint(i)), nil))
	}
	sigs, err := root.Signatures(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	small, bytes := 0, 0
	for _, s := range sigs {
		bytes += len(s.Payload)
		if len(s.Payload) < 10 {
			small++
		}
	}
	if small != 20 || bytes > 8<<20 {
		t.Errorf("got %d bytes, and %d of 20 small signatures", bytes, small)
	}
}

// cosign v2 appends to the .sig tag on each signing. The newest count.
func TestNewestOfManyTaggedSignaturesCount(t *testing.T) {
	reg := imagetest.Start(t)
	d := imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	root, err := resolve(t, imagetest.Store(t, reg.Host), imagetest.Reference(t, reg.Host+"/acme/count:v1"), image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := imagetest.In(reg.Host, "acme/count")
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutJSON(t, ocispec.MediaTypeImageConfig, struct{}{})}
	for i := range 100 {
		m.Layers = append(m.Layers, r.PutBlob(t, simpleSigning, []byte(fmt.Sprint(i)), nil))
	}
	r.PutManifest(t, "sha256-"+d.Encoded()+".sig", m)
	sigs, err := root.Signatures(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(sigs) != 64 || string(sigs[63].Payload) != "99" || sigs[0].Format != image.FormatTag {
		t.Errorf("got %d signatures, the last %q", len(sigs), sigs[len(sigs)-1].Payload)
	}
}

// What is kept of signatures is hashed like the rest of the cache.
func TestKeptSignaturesAreRepaired(t *testing.T) {
	reg := imagetest.Start(t)
	ref := signed(t, reg)
	store, dir := cached(t, reg)
	root, err := resolve(t, store, ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, root, false, three())
	never, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullNever})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range blobs(t, dir) {
		if strings.HasSuffix(path, root.Digest.Encoded()) {
			continue // the image itself
		}
		spoil(t, path)
		_, err := never.Signatures(t.Context(), false)
		wantError(t, err, image.ErrDigestMismatch, "")
		wantSignatures(t, root, false, three())
		wantSignatures(t, never, false, three())
	}
}

// Signing again replaces the manifest of the .sig tag, and registries throw away what no tag names. A cache that has lost
// the old one must look for the new one, not fail for good.
func TestSignedAgainAndCacheLostTheOldSignatures(t *testing.T) {
	reg := imagetest.Start(t)
	ref := signed(t, reg)
	store, dir := cached(t, reg)
	root, err := resolve(t, store, ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, root, false, three())

	answer, err := http.Get("http://" + reg.Host + "/v2/acme/count/manifests/sha256-" + root.Digest.Encoded() + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	old := answer.Header.Get("Docker-Content-Digest")
	again := image.Signature{Format: image.FormatTag, Payload: []byte(`{"tag":2}`), Annotations: map[string]string{"dev.cosignproject.cosign/signature": "dHdv"}}
	at := ref
	at.Digest = root.Digest
	if err := imagetest.Store(t, reg.Host).AttachSignature(t.Context(), at, again); err != nil {
		t.Fatal(err)
	}
	reg.Intercept(imagetest.Status("/manifests/"+old, http.StatusNotFound))
	for _, path := range blobs(t, dir) {
		if strings.HasSuffix(path, strings.TrimPrefix(old, "sha256:")) {
			spoil(t, path)
		}
	}
	wantSignatures(t, root, false, append(three(), again))
}

// What the list of referrers says of a manifest is the registry's word; whose signature it is, the manifest says.
func TestReferrerOfAnotherImageIsNone(t *testing.T) {
	reg := imagetest.Start(t)
	reg.Intercept(imagetest.NoReferrers())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	d := imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	r := imagetest.In(reg.Host, "acme/count")
	other := r.PutManifest(t, "", ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: bundleMediaType, Config: r.PutEmpty(t),
		Layers:  []ocispec.Descriptor{r.PutBlob(t, bundleMediaType, []byte(`{"of":"another"}`), nil)},
		Subject: &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("other"), Size: 5},
	})
	other.ArtifactType = bundleMediaType
	r.PutIndex(t, "sha256-"+d.Encoded(), ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{other}})
	root, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, root, false, nil)
}
