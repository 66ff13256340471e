// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// wantError checks an error's kind and that its text says what, is short, and is the same whenever it happens.
func wantError(t testing.TB, err, kind error, says string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("got %v, want %v", err, kind)
		return
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("error does not say %q: %v", says, err)
	}
	if len(err.Error()) > 700 || strings.ContainsAny(err.Error(), "\n\x00") || strings.Contains(err.Error(), os.TempDir()) {
		t.Errorf("text is not fit to show: %q", err.Error())
	}
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// open resolves and reads an image, whichever of the two fails.
func open(t testing.TB, s *image.Store, ref image.Reference) error {
	t.Helper()
	root, err := resolve(t, s, ref, image.PullOptions{})
	if err != nil {
		return err
	}
	_, err = root.Object(context.Background())
	return err
}

// Whatever a registry answers instead of the truth is an error that says so, at each request of a pull; and nothing of
// it stays behind.
func TestLyingRegistry(t *testing.T) {
	for _, part := range []string{"/manifests/v1", "/manifests/sha256:", "/blobs/"} {
		for _, tt := range []struct {
			name string
			hook imagetest.Hook
			want error
			says string
		}{
			{"NotFound", imagetest.Status(part, http.StatusNotFound), image.ErrNotFound, "answered 404"},
			{"Unauthorized", imagetest.Status(part, http.StatusUnauthorized), image.ErrUnauthenticated, "answered 401"},
			{"Forbidden", imagetest.Status(part, http.StatusForbidden), image.ErrUnauthenticated, "answered 403"},
			{"TooManyRequests", imagetest.Status(part, http.StatusTooManyRequests), image.ErrUnavailable, "answered 429"},
			{"ServerError", imagetest.Status(part, http.StatusInternalServerError), image.ErrUnavailable, "answered 500"},
			{"Teapot", imagetest.Status(part, http.StatusTeapot), image.ErrUnavailable, "answered 418"},
			{"Hang", imagetest.Hang(part), image.ErrUnavailable, "no answer in time"},
			{"Dropped", imagetest.Drop(part), image.ErrUnavailable, "cut off"},
			{"Truncated", imagetest.Truncate(part), image.ErrUnavailable, "cut off"},
			{"Flipped", imagetest.Flip(part), image.ErrDigestMismatch, ""},
			{"Empty", imagetest.Rewrite(part, func([]byte) []byte { return nil }), image.ErrDigestMismatch, ""},
			{"Half", imagetest.Rewrite(part, func(b []byte) []byte { return b[:len(b)/2] }), image.ErrDigestMismatch, ""},
			{"Longer", imagetest.Rewrite(part, func(b []byte) []byte { return append(b, 0) }), image.ErrDigestMismatch, ""},
			{"Page", imagetest.Rewrite(part, func([]byte) []byte { return []byte("<html>log in") }), image.ErrDigestMismatch, ""},
		} {
			t.Run(strings.Trim(part, "/:")+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				reg := imagetest.Start(t)
				imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count(), imagetest.BPFManIndex)
				ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
				store := imagetest.OpenStore(t, image.Options{
					Registries: imagetest.Registries(t, reg.Host),
					Limits:     image.Limits{Timeout: time.Second},
				})
				reg.Intercept(tt.hook)
				err := open(t, store, ref)
				wantError(t, err, tt.want, tt.says)
				if part == "/manifests/v1" && err != nil {
					if again := open(t, store, ref); again == nil || again.Error() != err.Error() {
						t.Errorf("the text changes:\n%v\n%v", err, again)
					}
				}
				reg.Intercept(nil)
				if err := open(t, store, ref); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		}
	}
}

func TestNobodyListens(t *testing.T) {
	host := "127.0.0.1:1"
	err := open(t, imagetest.Store(t, host), imagetest.Reference(t, host+"/acme/count:v1"))
	wantError(t, err, image.ErrUnavailable, "connection refused")
	err = open(t, imagetest.Store(t), imagetest.Reference(t, "registry.invalid/acme/count:v1"))
	wantError(t, err, image.ErrUnavailable, "cannot look up the host name")
}

// layered pushes an image of layers and returns its reference.
func layered(t testing.TB, reg *imagetest.Server, layers ...ocispec.Descriptor) image.Reference {
	t.Helper()
	r := imagetest.In(reg.Host, "acme/bad")
	d := r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t), Layers: layers})
	return imagetest.Reference(t, reg.Host+"/acme/bad@"+d.Digest.String())
}

func TestBadContent(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	r := imagetest.In(reg.Host, "acme/bad")
	archive := func(files ...imagetest.File) ocispec.Descriptor {
		return r.PutBlob(t, ocispec.MediaTypeImageLayerGzip, imagetest.Gzip(t, imagetest.Tar(t, files...)), nil)
	}
	raw := func(mediaType string, b []byte) ocispec.Descriptor { return r.PutBlob(t, mediaType, b, nil) }
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	x86 := self[:4096]
	linked := bpf.Pass()
	linked[16] = 2 // ET_EXEC
	many := make([]imagetest.File, 1025)
	for i := range many {
		many[i] = imagetest.File{Name: fmt.Sprint(i)}
	}
	thousand := imagetest.Tar(t, many[:1000]...)
	million := bytes.Repeat(imagetest.Gzip(t, thousand[:len(thousand)-1024]), 1000) // without the end of the archive
	object := imagetest.File{Name: "x.o", Data: bpf.Count()}
	packed := imagetest.Zstd(t, imagetest.Tar(t, object))
	for _, tt := range []struct {
		name   string
		layers []ocispec.Descriptor
		want   error
		says   string
	}{
		{"NoLayer", nil, image.ErrNoObject, ""},
		{"EmptyLayer", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerGzip, nil)}, image.ErrNoObject, ""},
		{"EmptyArchive", []ocispec.Descriptor{archive()}, image.ErrNoObject, ""},
		{"TextOnly", []ocispec.Descriptor{archive(imagetest.File{Name: "README", Data: []byte("hello")})}, image.ErrNoObject, ""},
		{"TwoInOneLayer", []ocispec.Descriptor{archive(object, imagetest.File{Name: "y.o", Data: bpf.Pass()})}, image.ErrAmbiguous, `"x.o" and "y.o"`},
		{"SameTwice", []ocispec.Descriptor{archive(object, object)}, image.ErrAmbiguous, ""},
		{"TwoLayers", []ocispec.Descriptor{archive(object), archive(imagetest.File{Name: "y.o", Data: bpf.Pass()})}, image.ErrAmbiguous, ""},
		{"TwoRaw", []ocispec.Descriptor{raw(image.ObjectMediaType, bpf.Pass()), raw(image.ObjectMediaType, bpf.Count())}, image.ErrAmbiguous, ""},
		{"X86", []ocispec.Descriptor{raw(image.ObjectMediaType, x86)}, image.ErrNoObject, "is an ELF file for EM_"},
		{"X86InArchive", []ocispec.Descriptor{archive(imagetest.File{Name: "bin/sh", Data: x86})}, image.ErrNoObject, `"bin/sh" is an ELF file for`},
		{"BigEndian", []ocispec.Descriptor{raw(image.ObjectMediaType, bpf.PassBigEndian())}, image.ErrPlatform, "byte order"},
		{"Linked", []ocispec.Descriptor{raw(image.ObjectMediaType, linked)}, image.ErrNoObject, "no relocatable object"},
		{"ShortELF", []ocispec.Descriptor{raw(image.ObjectMediaType, bpf.Pass()[:30])}, image.ErrNoObject, "not a whole ELF file"},
		{"NotZstd", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerZstd, []byte("\x28\xb5\x2f\xfd...."))}, image.ErrUnsupported, "whole archive"},
		{"CutZstd", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerZstd, packed[:len(packed)/2])}, image.ErrUnsupported, "whole archive"},
		{"CutZstdEnd", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerZstd, packed[:len(packed)-1])}, image.ErrUnsupported, "whole archive"},
		{"FlippedZstd", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerZstd, slices.Concat(packed[:40], []byte{^packed[40]}, packed[41:]))}, image.ErrUnsupported, "whole archive"},
		{"ZstdWithoutObject", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerZstd, imagetest.Zstd(t, nil))}, image.ErrNoObject, ""},
		{"ZstdDictionary", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerZstd, []byte("\x28\xb5\x2f\xfd\x21\x07\x04\x01\x00\x00...."))}, image.ErrUnsupported, "whole archive"},
		{"CutArchive", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayer, imagetest.Tar(t, object)[:4000])}, image.ErrUnsupported, "whole archive"},
		{"CutGzip", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerGzip, imagetest.Gzip(t, imagetest.Tar(t, object))[:1000])}, image.ErrUnsupported, "whole archive"},
		{"NotGzip", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerGzip, []byte("\x1f\x8bnonsense"))}, image.ErrUnsupported, "gzip"},
		{"NotTar", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayer, bytes.Repeat([]byte("x"), 2048))}, image.ErrNoObject, ""},
		{"MillionEntries", []ocispec.Descriptor{raw(ocispec.MediaTypeImageLayerGzip, million)}, image.ErrTooLarge, ""},
		{"Entries", []ocispec.Descriptor{archive(many...)}, image.ErrTooLarge, "1024 entries"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantError(t, open(t, store, layered(t, reg, tt.layers...)), tt.want, tt.says)
		})
	}
}

// Names in an archive are only shown; nothing is written to them, nothing linked is followed.
func TestArchiveNamesAndLinksAreHarmless(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	r := imagetest.In(reg.Host, "acme/bad")
	for _, name := range []string{"../../../../tmp/bpfvol-escape.o", "/etc/bpfvol-escape.o", "a/../../../bpfvol-escape.o", "x\x01\n.o"} {
		ref := layered(t, reg, r.PutBlob(t, ocispec.MediaTypeImageLayer, imagetest.Tar(t, imagetest.File{Name: name, Data: bpf.Pass()}), nil))
		o := pull(t, store, ref, image.PullOptions{})
		if strings.Contains(o.Name, "..") || strings.HasPrefix(o.Name, "/") {
			t.Errorf("%q became %q", name, o.Name)
		}
	}
	for _, path := range []string{"/tmp/bpfvol-escape.o", "/etc/bpfvol-escape.o"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was written", path)
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Name: "link.o", Typeflag: tar.TypeSymlink, Linkname: "/proc/self/exe"}, {Name: "hard.o", Typeflag: tar.TypeLink, Linkname: "../x.o"},
		{Name: "dev.o", Typeflag: tar.TypeBlock, Devmajor: 8}, {Name: "fifo.o", Typeflag: tar.TypeFifo}, {Name: "dir.o", Typeflag: tar.TypeDir},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ref := layered(t, reg, r.PutBlob(t, ocispec.MediaTypeImageLayer, buf.Bytes(), nil))
	wantError(t, open(t, store, ref), image.ErrNoObject, "")
}

// zeros is a gzip stream of so many zero bytes after a head.
func zeros(t testing.TB, head []byte, n int64) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(head); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeroReader{}, n); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// sparse is an archive of so many objects of 30 MiB each, which are holes but for their first bytes: PAX's sparse
// format 1.0, which package tar reads and does not write.
func sparse(t testing.TB, n int) []byte {
	t.Helper()
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("%d.o", i))
	}
	return sparseNamed(t, names...)
}

func sparseNamed(t testing.TB, names ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	data := make([]byte, 1024)
	copy(data, "1\n0\n64\n")
	copy(data[512:], bpf.Pass()[:64])
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{
			Name: name, Mode: 0o644, Size: 512 + 64, Format: tar.FormatPAX,
			PAXRecords: map[string]string{"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.realsize": fmt.Sprint(30 << 20)},
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data[:512+64]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(buf.Bytes(), []byte("XXX.sparse"), []byte("GNU.sparse"))
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// What is too large is refused by what its descriptor claims, before a byte of it is fetched; what hides its size, when
// it passes the limit.
func TestLimits(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	r := imagetest.In(reg.Host, "acme/bad")
	const huge = 8 << 30
	claim := func(mediaType string, size int64) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString("never asked for"), Size: size}
	}
	manifest := func(config ocispec.Descriptor, layers ...ocispec.Descriptor) image.Reference {
		d := r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers})
		return imagetest.Reference(t, reg.Host+"/acme/bad@"+d.Digest.String())
	}
	child := r.PutManifest(t, "", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t)})
	child.Size, child.Platform = huge, &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	index := r.PutIndex(t, "", ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{child}})

	var header bytes.Buffer
	if err := tar.NewWriter(&header).WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: 20 << 20}); err != nil {
		t.Fatal(err)
	}
	// Two files, each of which may be that large.
	files := slices.Concat(header.Bytes(), make([]byte, 20<<20), header.Bytes())
	object := imagetest.Tar(t, imagetest.File{Name: "x.o", Data: bpf.Pass()})
	object = object[:len(object)-1024] // without the end of the archive
	bomb := func(head []byte) ocispec.Descriptor {
		return r.PutBlob(t, ocispec.MediaTypeImageLayerGzip, zeros(t, head, 1<<26), nil)
	}
	// Each frame is small and unpacks to 1 MiB; the first begins an object.
	frames := append(imagetest.Zstd(t, bpf.Pass()), bytes.Repeat(imagetest.Zstd(t, make([]byte, 1<<20)), 64)...)
	var bombs []ocispec.Descriptor
	for i := range 8 {
		head := append(bpf.Pass(), byte(i))
		bombs = append(bombs, r.PutBlob(t, ocispec.MediaTypeImageLayerGzip, zeros(t, head, 8<<20), nil))
	}
	for _, tt := range []struct {
		name string
		ref  image.Reference
	}{
		{"ChildManifest", imagetest.Reference(t, reg.Host+"/acme/bad@"+index.Digest.String())},
		{"Config", manifest(claim(ocispec.MediaTypeImageConfig, huge))},
		{"Layer", manifest(r.PutEmpty(t), claim(ocispec.MediaTypeImageLayerGzip, huge))},
		{"NegativeLayer", manifest(r.PutEmpty(t), claim(ocispec.MediaTypeImageLayerGzip, -1))},
		{"Object", manifest(r.PutEmpty(t), claim(image.ObjectMediaType, huge))},
		{"LayersTogether", manifest(r.PutEmpty(t), claim("a/a", 12<<20), claim("a/b", 12<<20), claim("a/c", 12<<20))},
		{"ManyBombs", manifest(r.PutEmpty(t), bombs...)},
		{"SparseBombs", manifest(r.PutEmpty(t), r.PutBlob(t, ocispec.MediaTypeImageLayer, sparse(t, 64), nil))},
		{"ZstdBomb", manifest(r.PutEmpty(t), r.PutBlob(t, ocispec.MediaTypeImageLayerZstd, imagetest.Zstd(t, slices.Concat(object, files, files)), nil))},
		{"ZstdBombObject", manifest(r.PutEmpty(t), r.PutBlob(t, "x/y", imagetest.Zstd(t, append(bpf.Pass(), make([]byte, 40<<20)...)), nil))},
		{"ZstdManyFrames", manifest(r.PutEmpty(t), r.PutBlob(t, "x/y", frames, nil))},
		{"ZstdWindow", manifest(r.PutEmpty(t), r.PutBlob(t, "x/y", []byte("\x28\xb5\x2f\xfd\x00\xa8....."), nil))},
		{"ZstdContentSize", manifest(r.PutEmpty(t), r.PutBlob(t, "x/y", []byte("\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\x0f....."), nil))},
		{"BombObject", manifest(r.PutEmpty(t), bomb(bpf.Pass()))},
		{"BombFile", manifest(r.PutEmpty(t), bomb(files))},
		{"BombBesideObject", manifest(r.PutEmpty(t), bomb(slices.Concat(object, files)))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg.Requests()
			wantError(t, open(t, store, tt.ref), image.ErrTooLarge, "")
			for _, req := range reg.Requests() {
				if strings.Contains(req, digest.FromString("never asked for").Encoded()) {
					t.Errorf("it was asked for: %s", req)
				}
			}
		})
	}
	t.Run("Manifest", func(t *testing.T) {
		big := append([]byte(`{"layers":[],"x":"`), bytes.Repeat([]byte("x"), 5<<20)...)
		d := r.PutRaw(t, "", ocispec.MediaTypeImageManifest, append(big, `"}`...))
		wantError(t, open(t, store, imagetest.Reference(t, reg.Host+"/acme/bad@"+d.Digest.String())), image.ErrTooLarge, "manifest")
	})
	t.Run("EndlessManifest", func(t *testing.T) {
		reg.Intercept(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		})
		wantError(t, open(t, store, imagetest.Reference(t, reg.Host+"/acme/bad:endless")), image.ErrTooLarge, "manifest")
	})
}
