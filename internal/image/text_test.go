// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// What a registry writes is quoted and cut short in errors, whatever it is and wherever it stands: no escape sequence reaches
// a terminal, no line a log, and no megabyte an event.
func TestRegistryTextIsQuotedAndShort(t *testing.T) {
	nasty := "\x1b[2J\x1b]0;owned\a\r\nE1125 fake log line\u202e\x00" + strings.Repeat("A", 1<<20)
	short := "\x1b[31m\r\nfake\u0007" + strings.Repeat("B", 2000)
	body, err := json.Marshal(map[string]any{"errors": []map[string]any{{"code": nasty, "message": nasty, "detail": nasty}}})
	if err != nil {
		t.Fatal(err)
	}
	header := strings.Map(func(r rune) rune { // net/http sends no control characters but tabs
		if unicode.IsControl(r) {
			return '\t'
		}
		return r
	}, short)
	reg := imagetest.Start(t)
	r := imagetest.In(reg.Host, "acme/bad")
	imagetest.PushImage(t, reg.Host, "acme/bad", "v1", bpf.Count())
	hooks := map[string]imagetest.Hook{}
	for _, status := range []int{301, 400, 401, 403, 404, 418, 429, 500, 503} {
		hooks[fmt.Sprint(status)] = func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("WWW-Authenticate", "Bearer realm=\"http://"+reg.Host+"/token\",service=\""+header+"\",error=\""+header+"\"")
			w.Header().Set("Location", "http://"+header)
			w.Header().Set("Docker-Content-Digest", header)
			w.Header().Set("Warning", header)
			w.WriteHeader(status)
			w.Write(body)
		}
	}
	for name, change := range map[string]func(http.Header){
		"Type":   func(h http.Header) { h.Set("Content-Type", header) },
		"Digest": func(h http.Header) { h.Set("Docker-Content-Digest", header) },
		"Length": func(h http.Header) { h.Set("Content-Length", "8589934592") },
		"Range":  func(h http.Header) { h.Set("Content-Range", header) },
	} {
		hooks[name] = func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			change(w.Header())
			w.Write(body)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, hook := range hooks {
		reg.Intercept(hook)
		store := imagetest.OpenStore(t, image.Options{Registries: imagetest.Registries(t, reg.Host), Limits: image.Limits{Timeout: 5 * time.Second}})
		wantQuoted(t, name, open(t, store, imagetest.Reference(t, reg.Host+"/acme/bad:v1")))
	}
	reg.Intercept(nil)
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 64<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}

	// What an image says of itself: types, platforms, labels, names of files.
	layer := func(mediaType string) ocispec.Descriptor { return r.PutBlob(t, mediaType, []byte("x"), nil) }
	elf := bpf.Pass()
	elf[18] = 62 // EM_X86_64
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	child := r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t)})
	child.Platform = &ocispec.Platform{OS: short, Architecture: short}
	index.Manifests = []ocispec.Descriptor{child}
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: short}}
	for name, d := range map[string]ocispec.Descriptor{
		"MediaType":    r.PutRaw(t, "", ocispec.MediaTypeImageManifest, fmt.Appendf(nil, `{"mediaType":%q,"layers":[]}`, "x/\u0007"+strings.Repeat("C", 2000))),
		"Platform":     r.PutIndex(t, "", index),
		"Architecture": r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutJSON(t, ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{layer("x/y")}}),
		"Layer": r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t),
			Layers: []ocispec.Descriptor{{MediaType: short, Digest: digest.FromString("x"), Size: 8 << 30}}}),
		"LayerDigest": r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t),
			Layers: []ocispec.Descriptor{{MediaType: "x/y", Digest: digest.Digest(short), Size: 1}}}),
		"FileName": r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t),
			Layers: []ocispec.Descriptor{r.PutBlob(t, ocispec.MediaTypeImageLayer, imagetest.Tar(t, imagetest.File{Name: "a\x1b[31m\nb\x07" + strings.Repeat("D", 150), Data: elf}), nil)}}),
		"Title": r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t),
			Layers: []ocispec.Descriptor{r.PutBlob(t, image.ObjectMediaType, elf, map[string]string{ocispec.AnnotationTitle: short})}}),
	} {
		wantQuoted(t, name, open(t, imagetest.Store(t, reg.Host), imagetest.Reference(t, reg.Host+"/acme/bad@"+d.Digest.String())))
	}
}

func wantQuoted(t testing.TB, name string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", name)
		return
	}
	text := err.Error()
	if len(text) > 700 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.Contains(text, strings.Repeat("A", 200)) {
		t.Errorf("%s: text is not fit to show: %.900q", name, text)
	}
}

// A registry that answers so slowly that it never ends costs no more than the time for one stage.
func TestSlowBodiesEnd(t *testing.T) {
	for _, part := range []string{"/manifests/v1", "/manifests/sha256:", "/blobs/"} {
		t.Run(strings.Trim(part, "/:"), func(t *testing.T) {
			t.Parallel()
			reg := imagetest.Start(t)
			imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count(), imagetest.BPFManIndex)
			reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.Contains(r.URL.Path, part) {
					next.ServeHTTP(w, r)
					return
				}
				w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
				for {
					if _, err := w.Write([]byte(" ")); err != nil {
						return
					}
					w.(http.Flusher).Flush()
					select {
					case <-r.Context().Done():
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			})
			store := imagetest.OpenStore(t, image.Options{Registries: imagetest.Registries(t, reg.Host), Limits: image.Limits{Timeout: time.Second}})
			start := time.Now()
			wantError(t, open(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v1")), image.ErrUnavailable, "no answer in time")
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

// The digest is that of the bytes: a header that is missing changes nothing, and one that lies is an error.
func TestDigestHeader(t *testing.T) {
	reg := imagetest.Start(t)
	want := imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	header := func(change func(http.Header)) imagetest.Hook {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(headerWriter{w, change}, r)
		}
	}
	reg.Intercept(header(func(h http.Header) { h.Del("Docker-Content-Digest") }))
	root, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{})
	if err != nil || root.Digest != want {
		t.Errorf("without the header: %v, want %s", err, want)
	}
	if err := open(t, imagetest.Store(t, reg.Host), ref); err != nil {
		t.Errorf("without the header: %v", err)
	}
	reg.Intercept(header(func(h http.Header) { h.Set("Docker-Content-Digest", digest.FromString("x").String()) }))
	wantError(t, open(t, imagetest.Store(t, reg.Host), ref), image.ErrDigestMismatch, "")
}

// headerWriter changes the headers of an answer before they are sent.
type headerWriter struct {
	http.ResponseWriter
	change func(http.Header)
}

func (w headerWriter) WriteHeader(code int) {
	w.change(w.Header())
	w.ResponseWriter.WriteHeader(code)
}

// A tag that moves while an image is pulled changes nothing: it is asked once, then everything by digest.
func TestTagThatMovesDuringAPullChangesNothing(t *testing.T) {
	reg := imagetest.Start(t)
	first := imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count(), imagetest.BPFManIndex)
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	root, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Pass(), imagetest.BPFManIndex)
	o, err := root.Object(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Root != first || o.Digest != digest.FromBytes(bpf.Count()) {
		t.Errorf("got object %s of %s, want that of %s", o.Digest, o.Root, first)
	}
}
