// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Format is one of the forms in which bytecode images exist.
type Format string

const (
	BPFVol      Format = "bpfvol"       // what bpfvol build writes: an index of artifacts
	BPFMan      Format = "bpfman"       // a single OCI image with labels
	BPFManIndex Format = "bpfman-index" // an OCI index of such images, with the attestation entry that buildx adds
	Docker      Format = "docker"       // a single image with Docker's media types
	DockerList  Format = "docker-list"  // a Docker manifest list
	BPFManZstd  Format = "bpfman-zstd"  // a single OCI image whose layer is compressed by zstd
	DockerZstd  Format = "docker-zstd"  // the same with Docker's media types
	Gadget      Format = "gadget"       // Inspektor Gadget's
	ORAS        Format = "oras"         // a plain oras push of the object
)

// Formats lists every form.
var Formats = []Format{BPFVol, BPFMan, BPFManIndex, Docker, DockerList, BPFManZstd, DockerZstd, Gadget, ORAS}

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// PushImage pushes an image with one object for this machine's architecture and returns the digest that the tag names.
// The form is BPFVol where none is given.
func PushImage(t testing.TB, host, repository, tag string, elf []byte, form ...Format) digest.Digest {
	t.Helper()
	r := Repository{host + "/v2/" + repository}
	f := BPFVol
	if len(form) > 0 {
		f = form[0]
	}
	labels := map[string]string{"io.ebpf.programs": `{"count":"xdp"}`, "io.ebpf.maps": `{"flows":"lru_hash"}`}
	platform := &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	config := ocispec.Image{Platform: *platform, Config: ocispec.ImageConfig{Labels: labels}}
	title := map[string]string{ocispec.AnnotationTitle: "prog.bpf.o"}
	var d ocispec.Descriptor
	switch f {
	case BPFVol:
		d = r.PutManifest(t, "", ocispec.Manifest{
			MediaType:    ocispec.MediaTypeImageManifest,
			ArtifactType: "application/vnd.bpfvol.bytecode.v1",
			Config:       r.PutEmpty(t),
			Layers:       []ocispec.Descriptor{r.PutBlob(t, "application/vnd.bpfvol.object.v1+elf", elf, title)},
		})
		d = r.PutIndex(t, tag, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: on1(d, platform)})
	case BPFMan, BPFManIndex:
		d = r.PutManifest(t, tag, ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest,
			Config:    r.PutJSON(t, ocispec.MediaTypeImageConfig, config),
			Layers:    []ocispec.Descriptor{r.PutBlob(t, ocispec.MediaTypeImageLayerGzip, Gzip(t, Tar(t, File{"prog.bpf.o", elf})), nil)},
		})
		if f == BPFManIndex {
			attestation := r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t)})
			unknown := &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
			entries := append(on1(attestation, unknown), on1(d, platform)...)
			d = r.PutIndex(t, tag, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
		}
	case Docker, DockerList:
		d = r.PutManifest(t, tag, ocispec.Manifest{
			MediaType: dockerManifest,
			Config:    r.PutJSON(t, dockerConfig, config),
			Layers:    []ocispec.Descriptor{r.PutBlob(t, dockerLayer, Gzip(t, Tar(t, File{"prog.bpf.o", elf})), nil)},
		})
		if f == DockerList {
			d = r.PutIndex(t, tag, ocispec.Index{MediaType: dockerList, Manifests: on1(d, platform)})
		}
	case BPFManZstd, DockerZstd:
		layer, kind, configType := ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig
		if f == DockerZstd {
			layer, kind, configType = "application/vnd.docker.image.rootfs.diff.tar.zstd", dockerManifest, dockerConfig
		}
		d = r.PutManifest(t, tag, ocispec.Manifest{
			MediaType: kind,
			Config:    r.PutJSON(t, configType, config),
			Layers:    []ocispec.Descriptor{r.PutBlob(t, layer, Zstd(t, Tar(t, File{"prog.bpf.o", elf})), nil)},
		})
	case Gadget:
		d = r.PutManifest(t, "", ocispec.Manifest{
			MediaType:    ocispec.MediaTypeImageManifest,
			ArtifactType: "application/vnd.gadget.v1+binary",
			Config:       r.PutBlob(t, "application/vnd.gadget.config.v1+yaml", []byte("name: test\n"), nil),
			Layers: []ocispec.Descriptor{
				r.PutBlob(t, "application/vnd.gadget.ebpf.program.v1+binary", elf, title),
				r.PutBlob(t, "application/vnd.gadget.wasm.program.v1+binary", []byte("\x00asm"), nil),
			},
		})
		d = r.PutIndex(t, tag, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: on1(d, platform)})
	case ORAS:
		d = r.PutManifest(t, tag, ocispec.Manifest{
			MediaType:    ocispec.MediaTypeImageManifest,
			ArtifactType: "application/vnd.unknown.artifact.v1",
			Config:       r.PutEmpty(t),
			Layers:       []ocispec.Descriptor{r.PutBlob(t, ocispec.MediaTypeImageLayer, elf, title)},
		})
	default:
		t.Fatalf("no such format: %s", f)
	}
	return d.Digest
}

func on1(d ocispec.Descriptor, p *ocispec.Platform) []ocispec.Descriptor {
	d.Platform = p
	return []ocispec.Descriptor{d}
}

// Repository writes into one repository of a registry, byte by byte as a test wants it.
type Repository struct{ path string }

// In returns a repository of the registry at host.
func In(host, repository string) Repository { return Repository{host + "/v2/" + repository} }

// PutBlob pushes a blob and describes it.
func (r Repository) PutBlob(t testing.TB, mediaType string, data []byte, annotations map[string]string) ocispec.Descriptor {
	t.Helper()
	d := describe(mediaType, data)
	resp := do(t, http.MethodPost, "http://"+r.path+"/blobs/uploads/?digest="+d.Digest.String(), "application/octet-stream", data)
	if resp.StatusCode == http.StatusAccepted { // a registry that takes no blob in one request
		where, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		query := where.Query()
		query.Set("digest", d.Digest.String())
		where.RawQuery = query.Encode()
		resp = do(t, http.MethodPut, where.String(), "application/octet-stream", data)
	}
	wantCreated(t, resp)
	d.Annotations = annotations
	return d
}

// PutJSON pushes v as a blob.
func (r Repository) PutJSON(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	return r.PutBlob(t, mediaType, marshal(t, v), nil)
}

// PutEmpty pushes the empty config of an artifact.
func (r Repository) PutEmpty(t testing.TB) ocispec.Descriptor {
	t.Helper()
	return r.PutBlob(t, ocispec.MediaTypeEmptyJSON, []byte("{}"), nil)
}

// PutManifest pushes a manifest under a tag, or under its digest where tag is empty.
func (r Repository) PutManifest(t testing.TB, tag string, m ocispec.Manifest) ocispec.Descriptor {
	t.Helper()
	m.Versioned = specs.Versioned{SchemaVersion: 2}
	if m.Layers == nil {
		m.Layers = []ocispec.Descriptor{}
	}
	return r.PutRaw(t, tag, m.MediaType, marshal(t, m))
}

// PutIndex pushes an index under a tag, or under its digest where tag is empty.
func (r Repository) PutIndex(t testing.TB, tag string, i ocispec.Index) ocispec.Descriptor {
	t.Helper()
	i.Versioned = specs.Versioned{SchemaVersion: 2}
	return r.PutRaw(t, tag, i.MediaType, marshal(t, i))
}

// PutRaw pushes any bytes as a manifest.
func (r Repository) PutRaw(t testing.TB, tag, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	d := describe(mediaType, data)
	if tag == "" {
		tag = d.Digest.String()
	}
	wantCreated(t, do(t, http.MethodPut, "http://"+r.path+"/manifests/"+tag, mediaType, data))
	return d
}

// do returns the answer with its body read.
func do(t testing.TB, method, url, contentType string, body []byte) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	return resp
}

func wantCreated(t testing.TB, resp *http.Response) {
	t.Helper()
	if resp.StatusCode != http.StatusCreated {
		answer, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s: %s", resp.Request.Method, resp.Request.URL.Path, resp.Status, answer)
	}
}

func describe(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// File is one regular file of an archive.
type File struct {
	Name string
	Data []byte
}

// Tar returns an archive.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.Name, Mode: 0o644, Size: int64(len(f.Data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Gzip compresses data.
func Gzip(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Zstd compresses data.
func Zstd(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}
