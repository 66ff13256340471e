// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"encoding/json"
	"runtime"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func inputs() []image.BuildInput {
	return []image.BuildInput{
		{Name: "out/count_arm64.o", Arch: "arm64", ELF: bpf.Pass()},
		{Name: "out/count_amd64.o", Arch: runtime.GOARCH, ELF: bpf.Count()},
		{Name: "out/count_s390.o", Arch: "s390x", ELF: bpf.PassBigEndian()},
	}
}

var labels = map[string]map[string]string{runtime.GOARCH: {"io.ebpf.programs": `{"count":"xdp"}`}}

func build(t testing.TB, s *image.Store, ref image.Reference, opts image.BuildOptions) ocispec.Descriptor {
	t.Helper()
	d, err := s.Build(t.Context(), ref, inputs(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// The same objects give the same bytes, in any order and on any day.
func TestBuildIsDeterministic(t *testing.T) {
	ref := imagetest.Reference(t, "ghcr.io/acme/count:v1")
	for _, opts := range []image.BuildOptions{{Labels: labels}, {Labels: labels, BPFMan: true}} {
		want := build(t, imagetest.Store(t), ref, opts)
		reversed := inputs()
		slices.Reverse(reversed)
		got, err := imagetest.Store(t).Build(t.Context(), ref, reversed, opts)
		if err != nil || got.Digest != want.Digest {
			t.Errorf("bpfman=%t: got %s, want %s, %v", opts.BPFMan, got.Digest, want.Digest, err)
		}
	}
}

func TestBuiltImageIsFoundWithoutARegistry(t *testing.T) {
	store := imagetest.Store(t)
	for _, opts := range []image.BuildOptions{{Labels: labels}, {Labels: labels, BPFMan: true}} {
		ref := imagetest.Reference(t, "registry.invalid/acme/count:v1")
		d := build(t, store, ref, opts)
		for _, policy := range []volume.PullPolicy{volume.PullIfNotPresent, volume.PullNever} {
			o := pull(t, store, ref, image.PullOptions{Policy: policy})
			if !bytes.Equal(o.ELF, bpf.Count()) || o.Name != "count_amd64.o" || o.Root != d.Digest || o.Labels["io.ebpf.programs"] == "" {
				t.Errorf("%s: got %q with labels %v", policy, o.Name, o.Labels)
			}
			root, err := resolve(t, store, ref, image.PullOptions{Policy: policy})
			if err != nil {
				t.Fatal(err)
			}
			wantSignatures(t, root, false, nil)
			if got, err := root.Platforms(); err != nil || len(got) != 3 {
				t.Errorf("platforms are %v, %v", got, err)
			}
		}
		_, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullAlways})
		wantError(t, err, image.ErrUnavailable, "")
	}
}

func TestBuildRefuses(t *testing.T) {
	store := imagetest.Store(t)
	ref := imagetest.Reference(t, "ghcr.io/acme/count:v1")
	for name, tt := range map[string]struct {
		objects []image.BuildInput
		want    error
	}{
		"nothing":         {nil, image.ErrNoObject},
		"twice":           {[]image.BuildInput{{"a.o", "amd64", bpf.Pass()}, {"b.o", "amd64", bpf.Count()}}, image.ErrAmbiguous},
		"text":            {[]image.BuildInput{{"a.o", "amd64", []byte("hello")}}, image.ErrNoObject},
		"other endian":    {[]image.BuildInput{{"a.o", "amd64", bpf.PassBigEndian()}}, image.ErrPlatform},
		"no architecture": {[]image.BuildInput{{"a.o", "", bpf.Pass()}}, image.ErrPlatform},
		"too large":       {[]image.BuildInput{{"a.o", "amd64", append(bpf.Pass(), make([]byte, 32<<20)...)}}, image.ErrTooLarge},
	} {
		_, err := store.Build(t.Context(), ref, tt.objects, image.BuildOptions{})
		if err == nil {
			t.Errorf("%s: built", name)
			continue
		}
		wantError(t, err, tt.want, "build ghcr.io/acme/count:v1: ")
	}
}

// An image that was built and signed here, pushed, and pulled by another node is the same with the same signatures.
func TestPushCarriesSignatures(t *testing.T) {
	for name, hook := range map[string]imagetest.Hook{"API": nil, "TagSchema": imagetest.NoReferrers()} {
		t.Run(name, func(t *testing.T) {
			reg := imagetest.Start(t)
			reg.Intercept(hook)
			store := imagetest.Store(t, reg.Host)
			ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
			at := ref
			at.Digest = build(t, store, ref, image.BuildOptions{Labels: labels}).Digest
			for range 2 { // signing again with the same changes nothing
				for _, s := range three() {
					if err := store.AttachSignature(t.Context(), at, s); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got := reg.Requests(); len(got) > 0 {
				t.Errorf("building and signing made requests: %q", got)
			}
			root, err := resolve(t, store, ref, image.PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			wantSignatures(t, root, false, three())
			wantSignatures(t, root, true, three())

			var told []string
			for range 2 { // pushing again changes nothing
				d, err := store.Push(t.Context(), ref, image.PushOptions{Progress: func(s string) { told = append(told, s) }})
				if err != nil || d.Digest != at.Digest {
					t.Fatalf("pushed %s, %v", d.Digest, err)
				}
			}
			if len(told) == 0 {
				t.Error("no progress was told")
			}
			for _, ref := range []image.Reference{ref, at} {
				node := imagetest.Store(t, reg.Host)
				o := pull(t, node, ref, image.PullOptions{})
				if o.Root != at.Digest || !bytes.Equal(o.ELF, bpf.Count()) {
					t.Errorf("pulled %s", o.Root)
				}
				root, err := resolve(t, node, ref, image.PullOptions{})
				if err != nil {
					t.Fatal(err)
				}
				wantSignatures(t, root, false, three())
			}
			// From now on the image is in a registry, which is asked.
			more := image.Signature{Format: image.FormatTag, Payload: []byte(`{"tag":1}`), Annotations: map[string]string{"dev.cosignproject.cosign/signature": "bW9yZQ=="}}
			if err := store.AttachSignature(t.Context(), at, more); err != nil {
				t.Fatal(err)
			}
			node, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			wantSignatures(t, node, false, append(three(), more))
			again, err := resolve(t, store, ref, image.PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			wantSignatures(t, again, false, append(three(), more))
		})
	}
}

// Push does not take away signatures that others put under the tag.
func TestPushKeepsSignaturesOfOthers(t *testing.T) {
	reg := imagetest.Start(t)
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	at := ref
	ours, theirs := three()[0], three()[0]
	theirs.Annotations = map[string]string{"dev.cosignproject.cosign/signature": "dGhlaXJz"}
	for _, sig := range []image.Signature{ours, theirs} {
		store := imagetest.Store(t, reg.Host)
		at.Digest = build(t, store, ref, image.BuildOptions{}).Digest
		if err := store.AttachSignature(t.Context(), at, sig); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Push(t.Context(), ref, image.PushOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	root, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, root, false, []image.Signature{ours, theirs})
}

func TestPushAndAttachRefuse(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	_, err := store.Push(t.Context(), ref, image.PushOptions{})
	wantError(t, err, image.ErrNotCached, "build it first")
	wantError(t, store.AttachSignature(t.Context(), ref, three()[0]), image.ErrReference, "@sha256:")
	at := ref
	at.Digest = build(t, imagetest.Store(t), ref, image.BuildOptions{}).Digest
	wantError(t, store.AttachSignature(t.Context(), at, three()[0]), image.ErrNotFound, "")
	build(t, store, ref, image.BuildOptions{})
	wantError(t, store.AttachSignature(t.Context(), at, image.Signature{Format: "pgp"}), image.ErrUnsupported, `"pgp"; use bundle`)
	reg.Intercept(imagetest.BasicAuth("good", "secret"))
	_, err = store.Push(t.Context(), ref, image.PushOptions{})
	wantError(t, err, image.ErrUnauthenticated, "")
	if _, err = store.Push(t.Context(), ref, image.PushOptions{Keyring: keyring{reg.Host: {{Username: "good", Password: "secret"}}}}); err != nil {
		t.Error(err)
	}
	_, err = imagetest.Store(t).Push(t.Context(), ref, image.PushOptions{})
	wantError(t, err, image.ErrNotCached, "")
}

// The forms are cosign's, field by field: pkg/oci/remote/write.go of cosign v2.6.5.
func TestSignaturesAreStoredAsCosignDoes(t *testing.T) {
	reg := imagetest.Start(t)
	signed(t, reg)
	manifests := map[string]ocispec.Manifest{}
	store, dir := cached(t, reg)
	root, err := resolve(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v1"), image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, root, false, three())
	for _, path := range blobs(t, dir) {
		var m ocispec.Manifest
		if json.Unmarshal(read(t, path), &m) == nil && len(m.Layers) == 1 {
			manifests[m.ArtifactType] = m
		}
	}
	for artifactType, want := range map[string]struct{ config, layer string }{
		"": {ocispec.MediaTypeImageConfig, simpleSigning},
		"application/vnd.dev.cosign.artifact.sig.v1+json": {"application/vnd.dev.cosign.artifact.sig.v1+json", simpleSigning},
		bundleMediaType: {ocispec.MediaTypeEmptyJSON, bundleMediaType},
	} {
		m, found := manifests[artifactType]
		if !found {
			t.Errorf("no manifest of artifact type %q", artifactType)
			continue
		}
		if m.MediaType != ocispec.MediaTypeImageManifest || m.SchemaVersion != 2 || m.Config.MediaType != want.config || m.Layers[0].MediaType != want.layer {
			t.Errorf("%q: %+v", artifactType, m)
		}
		if (m.Subject != nil) != (artifactType != "") || m.Subject != nil && m.Subject.Digest != root.Digest {
			t.Errorf("%q: subject %+v", artifactType, m.Subject)
		}
		if artifactType == bundleMediaType && !strings.Contains(m.Annotations["dev.sigstore.bundle.predicateType"], "cosign/sign/v1") {
			t.Errorf("annotations of the bundle: %v", m.Annotations)
		}
	}
}
