// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

const (
	notTheManifest = `image $IMAGE: bytes differ from their digest: registry $REGISTRY sent a manifest that is not $SHA; push the image again`
	notTheBlob     = `image $IMAGE: bytes differ from their digest: sent by registry $REGISTRY; push the image again`
)

// registryCases are registries that send other bytes than they should, or say other things of them. (What the cache
// spoils: stories.)
func registryCases() []testCase {
	flip := func(path string) func(repository) imagetest.Hook {
		return func(repository) imagetest.Hook { return imagetest.Flip(path) }
	}
	// flipped changes the blob that the child manifest has chosen.
	flipped := func(choose func(ocispec.Manifest) digest.Digest) func(repository) imagetest.Hook {
		return func(r repository) imagetest.Hook {
			var once sync.Once
			var d digest.Digest
			return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				once.Do(func() {
					rec := httptest.NewRecorder()
					asked := httptest.NewRequest(http.MethodGet, "/v2/"+r.name+"/manifests/child", nil)
					asked.Header.Set("Accept", ocispec.MediaTypeImageManifest)
					next.ServeHTTP(rec, asked)
					d = choose(parsed[ocispec.Manifest](rec.Body.Bytes()))
				})
				imagetest.Flip("/blobs/"+d.String())(w, req, next)
			}
		}
	}
	config := func(m ocispec.Manifest) digest.Digest { return m.Config.Digest }
	layer := func(m ocispec.Manifest) digest.Digest { return m.Layers[0].Digest }
	return []testCase{
		{name: "FlippedIndex", push: pushParts(image.FormatTag), registry: flip("/manifests/v1"), code: codes.DataLoss, says: notTheManifest},
		{name: "FlippedChild", push: pushParts(image.FormatTag), registry: flip("/manifests/sha256:"), code: codes.DataLoss, says: notTheManifest},
		{name: "FlippedConfig", push: pushParts(image.FormatTag), registry: flipped(config), code: codes.DataLoss, says: notTheBlob},
		{name: "FlippedLayer", push: pushParts(image.FormatTag), registry: flipped(layer), code: codes.DataLoss, says: notTheBlob},
		{name: "FlippedSignature", push: pushParts(image.FormatTag), registry: flip(".sig"), code: codes.DataLoss,
			says: `image $SIGNED: signatures: bytes differ from their digest: registry $REGISTRY sent a manifest that is not $SHA; push the image again`},
		{name: "FlippedPayload", push: pushParts(image.FormatTag), registry: flip("/blobs/"), code: codes.DataLoss,
			says: `image $SIGNED: signatures: bytes differ from their digest: sent by registry $REGISTRY; push the image again`},
		{name: "FlippedBundle", push: pushParts(image.FormatBundle), registry: flip("/blobs/"), code: codes.DataLoss,
			says: `image $SIGNED: signatures: bytes differ from their digest: sent by registry $REGISTRY; push the image again`},
		{name: "CutBlob", push: pushParts(image.FormatTag), registry: func(repository) imagetest.Hook { return imagetest.Truncate("/blobs/") },
			code: codes.Unavailable, says: `image $SIGNED: signatures: unavailable: registry $REGISTRY: answer was cut off; try again later`},
		{name: "ShortBlob", push: pushParts(image.FormatTag), registry: rewritten("/blobs/", func(b []byte) []byte { return b[:len(b)/2] }), code: codes.DataLoss,
			says: `image $SIGNED: signatures: bytes differ from their digest: sent by registry $REGISTRY; push the image again`},
		{name: "LongBlob", push: pushParts(image.FormatTag), registry: rewritten("/blobs/", func(b []byte) []byte { return append(b, 'x') }), code: codes.DataLoss,
			says: `image $SIGNED: signatures: bytes differ from their digest: sent by registry $REGISTRY; push the image again`},
		{name: "NoDigestHeader", push: pushParts(image.FormatTag), registry: header(""), code: codes.OK},
		{name: "LyingDigestHeader", push: pushParts(image.FormatTag), registry: header(digest.FromString("something else").String()), code: codes.DataLoss, says: notTheManifest},
		{name: "TagMovesWhilePulling", push: func(t *testing.T, r repository) digest.Digest {
			good := pushParts(image.FormatTag)(t, r)
			r.push(t, "evil")
			return good
		}, registry: movedTag},
		{name: "IndexAndManifest", only: inProcess, push: func(t *testing.T, r repository) digest.Digest {
			d := r.PutRaw(t, "v1", ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}`)).Digest
			r.sign(t, releaseKey(), d, image.FormatTag)
			return d
		}, code: codes.InvalidArgument, says: `image $IMAGE: ambiguous image: it has both manifests and layers`},
	}
}

// pushParts is a good image with everything that an image can have, each of which no other case has brought into the
// cache: index, manifest, config, layer, signature. Its manifest is also tagged child.
func pushParts(f image.Format) func(*testing.T, repository) digest.Digest {
	return func(t *testing.T, r repository) digest.Digest {
		platform := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
		m := r.PutManifest(t, "child", ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest,
			Config:    r.PutJSON(t, ocispec.MediaTypeImageConfig, ocispec.Image{Platform: platform, Author: r.name}),
			Layers:    []ocispec.Descriptor{r.PutBlob(t, ocispec.MediaTypeImageLayer, imagetest.Tar(t, imagetest.File{Name: "x.o", Data: r.object("v1")}), nil)},
		})
		m.Platform = &platform
		d := r.PutIndex(t, "v1", ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{m}}).Digest
		r.sign(t, releaseKey(), d, f)
		return d
	}
}

func rewritten(path string, change func([]byte) []byte) func(repository) imagetest.Hook {
	return func(repository) imagetest.Hook { return imagetest.Rewrite(path, change) }
}

// header is a registry that says something else, or nothing, of a manifest's digest.
func header(says string) func(repository) imagetest.Hook {
	return func(repository) imagetest.Hook {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.Contains(r.URL.Path, "/manifests/v1") {
				next.ServeHTTP(w, r)
				return
			}
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.Header().Del("Docker-Content-Digest")
			if says != "" {
				w.Header().Set("Docker-Content-Digest", says)
			}
			w.WriteHeader(rec.Code)
			w.Write(rec.Body.Bytes())
		}
	}
}

// movedTag has the tag v1 of an image that nobody signed, once it was asked for.
func movedTag(r repository) imagetest.Hook {
	asked := false
	var mu sync.Mutex
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasSuffix(req.URL.Path, "/manifests/v1") {
			if asked {
				req.URL.Path = strings.TrimSuffix(req.URL.Path, "v1") + "evil"
			}
			asked = true
		}
		next.ServeHTTP(w, req)
	}
}
