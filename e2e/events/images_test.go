// SPDX-License-Identifier: Apache-2.0

package events

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// repository is where a case pushes its image.
type repository struct {
	imagetest.Repository
	host, name string
}

// object pushes an image with one object.
func object(elf func() []byte) func(*testing.T, *node, repository) digest.Digest {
	return func(t *testing.T, _ *node, r repository) digest.Digest {
		return imagetest.PushImage(t, r.host, r.name, "v1", unique(elf(), r))
	}
}

// unique makes the bytes of an object those of one case alone, so that no other one has brought them into the cache.
func unique(elf []byte, r repository) []byte { return append(elf, r.name...) }

// layer pushes an image with one layer of any bytes.
func layer(mediaType string, data func(t *testing.T) []byte) func(*testing.T, *node, repository) digest.Digest {
	return func(t *testing.T, _ *node, r repository) digest.Digest {
		l := r.PutBlob(t, mediaType, data(t), map[string]string{ocispec.AnnotationTitle: "prog.bpf.o"})
		return r.PutManifest(t, "v1", ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t), Layers: []ocispec.Descriptor{l},
		}).Digest
	}
}

func archive(files ...imagetest.File) func(*testing.T) []byte {
	return func(t *testing.T) []byte { return imagetest.Gzip(t, imagetest.Tar(t, files...)) }
}

// executable is the beginning of an ELF file for this machine's own processor.
func executable(t *testing.T) []byte {
	var b bytes.Buffer
	b.WriteString(elf.ELFMAG + "\x02\x01\x01")
	b.Write(make([]byte, 9))
	b.Write([]byte{byte(elf.ET_EXEC), 0, byte(elf.EM_X86_64), 0})
	b.Write(make([]byte, 100))
	return b.Bytes()
}

// bomb is an object that unpacks to 64 MiB.
func bomb(t *testing.T) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for _, part := range [][]byte{bpf.Pass(), make([]byte, 64<<20)} {
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// otherArch has an object only for an architecture that this machine is not of.
func otherArch(t *testing.T, _ *node, r repository) digest.Digest {
	m := r.PutManifest(t, "", ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t),
		Layers: []ocispec.Descriptor{r.PutBlob(t, "application/vnd.bpfvol.object.v1+elf", bpf.Count(), nil)},
	})
	m.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	return r.PutIndex(t, "v1", ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{m}}).Digest
}

// otherArchAlone is an image, no index, for an architecture that this machine is not of.
func otherArchAlone(t *testing.T, _ *node, r repository) digest.Digest {
	return r.PutManifest(t, "v1", ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    r.PutJSON(t, ocispec.MediaTypeImageConfig, ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}}),
		Layers:    []ocispec.Descriptor{r.PutBlob(t, ocispec.MediaTypeImageLayerGzip, archive(imagetest.File{Name: "a.o", Data: bpf.Count()})(t), nil)},
	}).Digest
}

func twoObjects(t *testing.T) []byte {
	return archive(imagetest.File{Name: "a.o", Data: bpf.Count()}, imagetest.File{Name: "b.o", Data: bpf.Pass()})(t)
}

func wrongKey(t *testing.T, n *node, r repository) digest.Digest {
	key, _, err := cosign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	d := imagetest.PushImage(t, r.host, r.name, "v1", unique(bpf.Drop(), r))
	n.signBy(t, key, r.name, d)
	return d
}

// transplanted gives an image the signature of another one of the same repository.
func transplanted(t *testing.T, n *node, r repository) digest.Digest {
	good := imagetest.PushImage(t, r.host, r.name, "good", bpf.Count())
	n.sign(t, r.name, good)
	evil := imagetest.PushImage(t, r.host, r.name, "v1", unique(bpf.Drop(), r))
	resp, err := http.Get("http://" + r.host + "/v2/" + r.name + "/manifests/" + signatureTag(good))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var manifest bytes.Buffer
	if _, err := manifest.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	r.PutRaw(t, signatureTag(evil), resp.Header.Get("Content-Type"), manifest.Bytes())
	return evil
}

func signatureTag(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() + ".sig" }

// nonsenseToken wants a token, and what gives them out does not.
func nonsenseToken(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if r.URL.Path == "/token" {
		w.Write([]byte("<html>"))
		return
	}
	realm("http://"+r.Host+"/token")(w, r, next)
}

// realm wants a token from an address.
func realm(address string) imagetest.Hook {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+address+`",service="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// repeats answers a login with nothing but the login.
func repeats(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, password, ok := r.BasicAuth()
	if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(conn, "%s\r\n\r\n", password)
	conn.Close()
}
