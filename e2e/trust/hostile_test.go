// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"archive/tar"
	"bytes"
	"net/http"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/e2e/hostile"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// hostileImages are signed by a good key all the same: who may sign may be deceived, too.
func hostileImages() []testCase {
	layers := func(mediaType string, blobs ...func(t *testing.T, r repository) []byte) func(*testing.T, repository) digest.Digest {
		return func(t *testing.T, r repository) digest.Digest {
			m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t)}
			for _, blob := range blobs {
				m.Layers = append(m.Layers, r.PutBlob(t, mediaType, blob(t, r), nil))
			}
			d := r.PutManifest(t, "v1", m).Digest
			r.sign(t, releaseKey(), d, image.FormatTag)
			return d
		}
	}
	archive := func(names ...string) func(*testing.T, repository) []byte {
		return func(t *testing.T, r repository) []byte {
			var files []imagetest.File
			for _, name := range names {
				files = append(files, imagetest.File{Name: name, Data: r.object(name)})
			}
			return imagetest.Tar(t, files...)
		}
	}
	bytes := func(make func() []byte) func(*testing.T, repository) []byte {
		return func(*testing.T, repository) []byte { return make() }
	}
	const (
		noObject = `image $IMAGE: no BPF object; build the image from the output of clang -target bpf -c`
		gzipped  = ocispec.MediaTypeImageLayerGzip
		plain    = ocispec.MediaTypeImageLayer
	)
	return []testCase{
		{name: "GzipBomb", push: layers(gzipped, bytes(func() []byte { return hostile.GzipBomb(bpf.Hooks()) })), code: codes.InvalidArgument,
			says: `image $IMAGE: over the limit: objects have more than 33554432 bytes`},
		{name: "GzipBombBesideObject", push: layers(gzipped, bytes(func() []byte { return hostile.GzipBomb(hostile.TarHeader("zeros", 1<<30)) })), code: codes.InvalidArgument,
			says: `image $IMAGE: over the limit: layers are larger than an object may be when unpacked`},
		{name: "MillionEntries", push: layers(gzipped, bytes(hostile.MillionEntries)), code: codes.InvalidArgument,
			says: `image $IMAGE: over the limit: layers have more than 1024 entries`},
		{name: "EightGiBManifest", push: pushSigned, registry: func(repository) imagetest.Hook { return hugeManifest }, code: codes.InvalidArgument,
			says: `image $IMAGE: over the limit: manifest has 8589934592 bytes, allowed are 4194304`},
		{name: "EndlessManifest", push: pushSigned, registry: func(repository) imagetest.Hook { return endlessManifest }, code: codes.InvalidArgument,
			says: `image $IMAGE: over the limit: manifest has more than 4194304 bytes`},
		{name: "DeepManifest", push: pushSigned, registry: rewrittenManifest([]byte(`{"config":` + string(hostile.Deep("[", 1<<20)))), code: codes.InvalidArgument,
			says: `image $IMAGE: unsupported image: $WORDS is not JSON as it should be`},
		{name: "ManifestIsHTML", push: pushSigned, registry: rewrittenManifest([]byte("<html>please log in</html>")), code: codes.InvalidArgument,
			says: `image $IMAGE: unsupported image: $WORDS is not JSON as it should be`},
		{name: "NameLeadsUpwards", push: layers(plain, archive("../../../../tmp/bpfvol-escape.o"))},
		{name: "NameIsAbsolute", push: layers(plain, archive("/etc/bpfvol-escape.o"))},
		{name: "LinksAndDevices", push: layers(plain, bytes(linksAndDevices)), code: codes.InvalidArgument, says: noObject},
		{name: "TwoObjects", push: layers(plain, archive("a.o", "b.o")), code: codes.InvalidArgument,
			says: `image $IMAGE: ambiguous image: it has the objects "a.o" and "b.o"; build one image for each`},
		{name: "TwoLayers", push: layers(plain, archive("a.o"), archive("b.o")), code: codes.InvalidArgument,
			says: `image $IMAGE: ambiguous image: it has the objects "a.o" and "b.o"; build one image for each`},
		{name: "BigEndian", push: layers(plain, bytes(bpf.PassBigEndian)), code: codes.InvalidArgument,
			says: `image $IMAGE: wrong architecture: object "" has the byte order of other machines; build it with clang -target bpfel`},
		{name: "OtherMachine", push: layers(plain, executable), code: codes.InvalidArgument,
			says: `image $IMAGE: no BPF object: "" is an ELF file for $WORDS; build the image from the output of clang -target bpf -c`},
		{name: "CutObject", push: layers(plain, bytes(func() []byte { return bpf.Hooks()[:1000] })), code: codes.InvalidArgument,
			says: `object: malformed ELF: EOF; compile it again with clang -target bpf`},
		{name: "CutGzip", push: layers(gzipped, func(t *testing.T, r repository) []byte {
			return imagetest.Gzip(t, archive("a.o")(t, r))[:1000]
		}), code: codes.InvalidArgument, says: `image $IMAGE: unsupported image: layer is not a whole archive`},
		{name: "NoLayers", push: layers(plain), code: codes.InvalidArgument, says: noObject},
	}
}

func hugeManifest(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if r.Method != http.MethodGet {
		next.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	w.Header().Set("Content-Length", "8589934592")
	w.WriteHeader(http.StatusOK)
}

func endlessManifest(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	for {
		if _, err := w.Write(make([]byte, 1<<16)); err != nil {
			return
		}
	}
}

// rewrittenManifest is a registry whose tag v1 is something else, of which it says the digest.
func rewrittenManifest(body []byte) func(repository) imagetest.Hook {
	return func(repository) imagetest.Hook {
		return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
			w.Write(body)
		}
	}
}

func linksAndDevices() []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Name: "link.o", Typeflag: tar.TypeSymlink, Linkname: "/proc/self/exe"},
		{Name: "hard.o", Typeflag: tar.TypeLink, Linkname: "../x.o"},
		{Name: "dev.o", Typeflag: tar.TypeBlock, Devmajor: 8},
		{Name: "fifo.o", Typeflag: tar.TypeFifo},
		{Name: "dir.o", Typeflag: tar.TypeDir},
	} {
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

// executable is the beginning of this program.
func executable(t *testing.T, _ repository) []byte {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	head := make([]byte, 4096)
	if _, err := self.Read(head); err != nil {
		t.Fatal(err)
	}
	return slices.Clip(head)
}

// Names in archives are for display.
func wantNoEscape(t *testing.T) {
	t.Helper()
	for _, path := range []string{"/tmp/bpfvol-escape.o", "/etc/bpfvol-escape.o"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was written", path)
		}
	}
}
