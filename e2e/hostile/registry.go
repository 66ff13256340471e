// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a registry that nobody can push to: it has what it was made with, also what a good registry would not take.
type Registry struct{ documents map[string]document }

type document struct {
	mediaType string
	body      func() []byte
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	d, found := r.documents[strings.TrimPrefix(req.URL.Path, "/v2/")]
	if !found {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", d.mediaType)
	w.Write(d.body())
}

// repository writes one repository of a registry.
type repository struct {
	registry *Registry
	name     string
}

func (r repository) put(path, mediaType string, body []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	r.registry.documents[r.name+"/"+path] = document{mediaType, func() []byte { return body }}
	return d
}

// blob has a body of its own at its digest.
func (r repository) blob(mediaType string, body []byte) ocispec.Descriptor {
	return r.put("blobs/"+digest.FromBytes(body).String(), mediaType, body)
}

// manifest is found by tag, where there is one, and by digest.
func (r repository) manifest(tag string, m ocispec.Manifest) ocispec.Descriptor {
	m.Versioned, m.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageManifest
	if m.Config.MediaType == "" {
		m.Config = r.blob(ocispec.MediaTypeEmptyJSON, []byte("{}"))
	}
	return r.raw(tag, m.MediaType, marshal(m))
}

func (r repository) raw(tag, mediaType string, body []byte) ocispec.Descriptor {
	if tag != "" {
		r.put("manifests/"+tag, mediaType, body)
	}
	return r.put("manifests/"+digest.FromBytes(body).String(), mediaType, body)
}

// refer lists what refers to a digest.
func (r repository) refer(to digest.Digest, ds ...ocispec.Descriptor) {
	r.put("referrers/"+to.String(), ocispec.MediaTypeImageIndex, marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: ds,
	}))
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
