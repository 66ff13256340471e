// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// vector is a repository as real cosign left it; testdata/README.md says how.
type vector struct {
	key       []byte
	image     digest.Digest
	manifests map[string][]byte // by digest or tag, the image first of order
	order     []string
	blobs     map[digest.Digest][]byte
}

func readVector(t testing.TB, name string) vector {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", "vectors", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	v := vector{manifests: map[string][]byte{}, blobs: map[digest.Digest][]byte{}}
	for _, f := range a.Files {
		what, ref, _ := strings.Cut(f.Name, "/")
		switch what {
		case "public.pem":
			v.key = f.Data
		case "manifests":
			raw := []byte(strings.TrimSuffix(string(f.Data), "\n")) // txtar ends every file with a newline
			if v.image == "" {
				v.image = digest.FromBytes(raw)
			}
			v.manifests[ref] = raw
			v.order = append(v.order, ref)
		case "blobs":
			raw := f.Data
			if digest.FromBytes(raw) != digest.Digest(ref) {
				raw = raw[:len(raw)-1]
			}
			if got := digest.FromBytes(raw); got != digest.Digest(ref) {
				t.Fatalf("%s: %s has digest %s", name, f.Name, got)
			}
			v.blobs[digest.Digest(ref)] = raw
		}
	}
	return v
}

// signatures finds what package image would.
func (v vector) signatures(t testing.TB) []image.Signature {
	t.Helper()
	var sigs []image.Signature
	for _, ref := range v.order[1:] {
		var m ocispec.Manifest
		if err := json.Unmarshal(v.manifests[ref], &m); err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			s := image.Signature{Format: image.FormatReferrer, Payload: v.blobs[l.Digest], Annotations: l.Annotations}
			switch {
			case strings.HasSuffix(ref, ".sig"):
				s.Format = image.FormatTag
			case strings.HasPrefix(l.MediaType, "application/vnd.dev.sigstore.bundle"):
				s.Format = image.FormatBundle
			}
			sigs = append(sigs, s)
		}
	}
	return sigs
}

// authority compiles one public key.
func authority(t testing.TB, pubPEM []byte) verify.Authority {
	t.Helper()
	a, err := compileKey(pubPEM)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func compileKey(pubPEM []byte) (verify.Authority, error) {
	return cosign.Compile(v1alpha1.Authority{Key: &v1alpha1.Key{Data: string(pubPEM)}}, "")
}

// written lists the signatures that real cosign made, with the format it stored each in.
var written = map[string]image.Format{
	"v2-tag":              image.FormatTag,
	"v2-tag-annotated":    image.FormatTag,
	"v2-tag-rsa":          image.FormatTag,
	"v2-tag-p384":         image.FormatTag,
	"v2-tag-ed25519":      image.FormatTag,
	"v2-referrer":         image.FormatReferrer,
	"v2-bundle":           image.FormatBundle,
	"v2-bundle-rsa":       image.FormatBundle,
	"v2-bundle-p384":      image.FormatBundle,
	"v2-bundle-ed25519":   image.FormatBundle,
	"v3-bundle":           image.FormatBundle,
	"v3-bundle-annotated": image.FormatBundle,
	"v3-bundle-rsa":       image.FormatBundle,
	"v3-bundle-p384":      image.FormatBundle,
	"v3-bundle-ed25519":   image.FormatBundle,
	"v3-tag":              image.FormatTag,
}
