// SPDX-License-Identifier: Apache-2.0

// Package imagetest has registries for tests: real HTTP on loopback, in this process, as well-behaved or as hostile
// as a test wants.
//
//	reg := imagetest.Start(t)
//	digest := imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
//	store := imagetest.Store(t, reg.Host)
//	reg.Intercept(imagetest.Status("/blobs/", 500))
//
// The registry itself is go-containerregistry's. It keeps everything in memory and ends with the test.
package imagetest

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Server is a registry on loopback that speaks plain HTTP.
type Server struct {
	// Host is the registry as in image references: "127.0.0.1:37561".
	Host string
	Gate

	registry http.Handler
}

// Registry starts a registry for the length of the test and returns its host.
func Registry(t testing.TB) (host string) { return Start(t).Host }

// Start starts a registry for the length of the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{registry: referrers(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))}
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		s.Intercept(nil)
		server.CloseClientConnections()
		server.Close()
	})
	s.Host = strings.TrimPrefix(server.URL, "http://")
	return s
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Before(s.registry).ServeHTTP(w, r)
}

// referrers makes answers of the referrers API say the artifactType of each manifest, which go-containerregistry
// v0.22.1 reads from the config's media type alone.
func referrers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head, _, found := strings.Cut(r.URL.Path, "/referrers/")
		if !found {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		var index ocispec.Index
		if rec.Code != http.StatusOK || json.Unmarshal(rec.Body.Bytes(), &index) != nil {
			replay(w, rec, rec.Body.Bytes())
			return
		}
		for i, d := range index.Manifests {
			manifest := httptest.NewRecorder()
			next.ServeHTTP(manifest, httptest.NewRequest(http.MethodGet, head+"/manifests/"+d.Digest.String(), nil))
			var m ocispec.Manifest
			if json.Unmarshal(manifest.Body.Bytes(), &m) == nil && m.ArtifactType != "" {
				index.Manifests[i].ArtifactType = m.ArtifactType
			}
		}
		body, err := json.Marshal(index)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		replay(w, rec, body)
	})
}

// replay answers as rec did, with another body.
func replay(w http.ResponseWriter, rec *httptest.ResponseRecorder, body []byte) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(rec.Code)
	w.Write(body)
}
