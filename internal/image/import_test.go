// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// exported pushes a signed image and returns the files of its archive, by name.
func exported(t testing.TB) (image.Reference, map[string]string) {
	t.Helper()
	reg := imagetest.Start(t)
	ref := signed(t, reg)
	root, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := root.Export(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return ref, files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(data)
	}
}

func archive(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var list []imagetest.File
	for _, name := range slices.Sorted(maps.Keys(files)) {
		list = append(list, imagetest.File{Name: name, Data: []byte(files[name])})
	}
	return imagetest.Tar(t, list...)
}

// reindex changes the descriptors of an archive's index.json.
func reindex(t testing.TB, files map[string]string, change func([]ocispec.Descriptor) []ocispec.Descriptor) map[string]string {
	t.Helper()
	var index ocispec.Index
	if err := json.Unmarshal([]byte(files["index.json"]), &index); err != nil {
		t.Fatal(err)
	}
	index.Manifests = change(index.Manifests)
	b, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	out := maps.Clone(files)
	out["index.json"] = string(b)
	return out
}

// wantOffline checks that a store without any registry has the image, and its signatures.
func wantOffline(t testing.TB, s *image.Store, ref image.Reference, sigs []image.Signature) {
	t.Helper()
	root, err := resolve(t, s, ref, image.PullOptions{Policy: volume.PullNever})
	if err != nil {
		t.Fatal(err)
	}
	o, err := root.Object(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(o.ELF, bpf.Count()) {
		t.Error("the object is another one")
	}
	wantSignatures(t, root, false, sigs)
}

// What export, oras, cosign, docker and skopeo write is taken in with its signatures, and needs no registry any more.
func TestImportReadsWhatToolsWrite(t *testing.T) {
	ref, files := exported(t)
	as := func(annotations map[string]string) func(ocispec.Descriptor) ocispec.Descriptor {
		return func(d ocispec.Descriptor) ocispec.Descriptor { d.Annotations = annotations; return d }
	}
	named := as(map[string]string{ocispec.AnnotationRefName: "v1"})
	nameless := as(nil)
	sigs := three()
	for name, tt := range map[string]struct {
		change func([]ocispec.Descriptor) []ocispec.Descriptor
		as     bool
		want   []image.Signature
	}{
		"Export":      {nil, false, sigs},
		"ExportAs":    {nil, true, sigs},
		"OrasRefName": {func(d []ocispec.Descriptor) []ocispec.Descriptor { return append(each(d[2:], nameless), named(d[0])) }, true, sigs[1:]},
		"OrasTagSchema": {func(d []ocispec.Descriptor) []ocispec.Descriptor {
			tag := strings.Replace(string(d[0].Digest), ":", "-", 1) + ".sig"
			return []ocispec.Descriptor{named(d[0]), as(map[string]string{ocispec.AnnotationRefName: tag})(d[1])}
		}, true, sigs[:1]},
		"CosignSave": {func(d []ocispec.Descriptor) []ocispec.Descriptor {
			return []ocispec.Descriptor{
				as(map[string]string{"kind": "dev.cosignproject.cosign/imageIndex"})(d[0]),
				as(map[string]string{"kind": "dev.cosignproject.cosign/sigs"})(d[1]),
				as(map[string]string{"kind": "dev.cosignproject.cosign/atts"})(d[2]),
			}
		}, true, nil}, // the payload of this test's signature names no digest
		"Docker": {func(d []ocispec.Descriptor) []ocispec.Descriptor {
			return []ocispec.Descriptor{as(map[string]string{"io.containerd.image.name": ref.String(), ocispec.AnnotationRefName: "v1"})(d[0])}
		}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			changed := maps.Clone(files)
			if tt.change != nil {
				changed = reindex(t, files, tt.change)
			}
			changed["manifest.json"] = "[]" // docker's
			for form, from := range map[string]string{"Directory": hostsDir(t, changed), "Archive": "", "Gzip": "", "Zstd": ""} {
				store := imagetest.Store(t)
				var opts image.ImportOptions
				if tt.as {
					opts.As = ref
				}
				b := archive(t, changed)
				var got []image.Cached
				var err error
				switch form {
				case "Gzip":
					got, err = store.ImportArchive(t.Context(), bytes.NewReader(imagetest.Gzip(t, b)), opts)
				case "Zstd":
					got, err = store.ImportArchive(t.Context(), bytes.NewReader(imagetest.Zstd(t, b)), opts)
				case "Archive":
					from = filepath.Join(t.TempDir(), "x.tar")
					write(t, from, string(b))
					fallthrough
				default:
					got, err = store.Import(t.Context(), from, opts)
				}
				if err != nil {
					t.Fatalf("%s: %v", form, err)
				}
				if len(got) != 1 || !slices.Equal(got[0].References(), []string{ref.String()}) || got[0].Origin != image.OriginImported {
					t.Errorf("%s: imported %+v", form, got)
				}
				wantOffline(t, store, ref, tt.want)
			}
		})
	}
}

func each(list []ocispec.Descriptor, change func(ocispec.Descriptor) ocispec.Descriptor) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	for _, d := range list {
		out = append(out, change(d))
	}
	return out
}

// The signature of cosign's simple signing names the image that it is about, so that cosign save need not.
func TestImportFindsTheSignedImage(t *testing.T) {
	_, files := exported(t)
	ref := imagetest.Reference(t, "ghcr.io/acme/count:v1")
	var index ocispec.Index
	if err := json.Unmarshal([]byte(files["index.json"]), &index); err != nil {
		t.Fatal(err)
	}
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		files["blobs/sha256/"+d.Digest.Encoded()] = string(b)
		return d
	}
	payload := fmt.Sprintf(`{"critical":{"image":{"docker-manifest-digest":%q}}}`, index.Manifests[0].Digest)
	layer := put(simpleSigning, []byte(payload))
	manifest, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: put(ocispec.MediaTypeImageConfig, []byte("{}")), Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	sigs := put(ocispec.MediaTypeImageManifest, manifest)
	sigs.Annotations = map[string]string{"kind": "dev.cosignproject.cosign/sigs"}
	changed := reindex(t, files, func(d []ocispec.Descriptor) []ocispec.Descriptor {
		d[0].Annotations = nil
		return []ocispec.Descriptor{d[0], sigs}
	})
	store := imagetest.Store(t)
	if _, err := store.ImportArchive(t.Context(), bytes.NewReader(archive(t, changed)), image.ImportOptions{As: ref}); err != nil {
		t.Fatal(err)
	}
	wantOffline(t, store, ref, []image.Signature{{Format: image.FormatTag, Payload: []byte(payload)}})
}

// The same image and signatures give the same archive, also from a cache that an archive filled.
func TestExportIsDeterministic(t *testing.T) {
	ref, files := exported(t)
	store := imagetest.Store(t)
	if _, err := store.ImportArchive(t.Context(), bytes.NewReader(archive(t, files)), image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	root, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullNever})
	if err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := root.Export(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two exports differ")
	}
	again := imagetest.Store(t)
	if _, err := again.ImportArchive(t.Context(), &first, image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	wantOffline(t, again, ref, three())
}

// An import adds to the signatures that the cache has.
func TestImportLosesNoSignature(t *testing.T) {
	ref, files := exported(t)
	store := imagetest.Store(t)
	for _, keep := range []func([]ocispec.Descriptor) []ocispec.Descriptor{
		func(d []ocispec.Descriptor) []ocispec.Descriptor { return d[:2] },
		func(d []ocispec.Descriptor) []ocispec.Descriptor { return append(d[:1:1], d[2:]...) },
		func(d []ocispec.Descriptor) []ocispec.Descriptor { return d[:1] },
	} {
		if _, err := store.ImportArchive(t.Context(), bytes.NewReader(archive(t, reindex(t, files, keep))), image.ImportOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	wantOffline(t, store, ref, three())
}

// tree lists what stands in a cache, but for its locks.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasSuffix(path, ".lock") {
			b, _ := os.ReadFile(path)
			out = append(out, strings.TrimPrefix(path, dir)+" "+digest.FromBytes(b).String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Whatever is wrong with an archive, the error says so, and the cache is as it was before.
func TestHostileArchives(t *testing.T) {
	ref, files := exported(t)
	var index ocispec.Index
	if err := json.Unmarshal([]byte(files["index.json"]), &index); err != nil {
		t.Fatal(err)
	}
	rootBlob := "blobs/sha256/" + index.Manifests[0].Digest.Encoded()
	layerBlob := "blobs/sha256/" + digest.FromBytes(bpf.Count()).Encoded()
	sigBlob := "blobs/sha256/" + digest.FromString(`{"tag":1}`).Encoded()
	with := func(change func(map[string]string)) []byte {
		changed := maps.Clone(files)
		change(changed)
		return archive(t, changed)
	}
	headers := func(hs ...tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range hs {
			if h.Mode == 0 {
				h.Mode = 0o644
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(w, zeroReader{}, min(h.Size, 1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		return append(b.Bytes(), archive(t, files)...)
	}
	reindexed := func(change func([]ocispec.Descriptor) []ocispec.Descriptor) []byte {
		return archive(t, reindex(t, files, change))
	}
	many := make([]imagetest.File, 1<<14+1)
	for i := range many {
		many[i].Name = fmt.Sprint(i)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "s3cret")
	type archived struct {
		archive []byte
		want    error
		says    string
	}
	all := map[string]archived{
		"Empty":      {nil, image.ErrUnsupported, "not an OCI layout"},
		"Text":       {[]byte(strings.Repeat("no archive ", 100)), image.ErrUnsupported, "not a whole archive"},
		"BadGzip":    {[]byte("\x1f\x8bnonsense"), image.ErrUnsupported, "not gzip"},
		"BadZstd":    {[]byte("\x28\xb5\x2f\xfdnonsense"), image.ErrUnsupported, "not a whole archive"},
		"Cut":        {archive(t, files)[:5000], image.ErrUnsupported, ""},
		"CutGzip":    {imagetest.Gzip(t, archive(t, files))[:600], image.ErrUnsupported, "not a whole archive"},
		"DockerSave": {archive(t, map[string]string{"manifest.json": "[]", "repositories": "{}"}), image.ErrUnsupported, "not an OCI layout"},
		"NoIndex":    {with(func(f map[string]string) { delete(f, "index.json") }), image.ErrUnsupported, "no index.json"},
		"BadIndex":   {with(func(f map[string]string) { f["index.json"] = "[" }), image.ErrUnsupported, "not JSON"},
		"Version":    {with(func(f map[string]string) { f["oci-layout"] = `{"imageLayoutVersion":"2.0.0"}` }), image.ErrUnsupported, "not an OCI layout"},
		"HugeIndex":  {with(func(f map[string]string) { f["index.json"] = strings.Repeat(" ", 5<<20) }), image.ErrTooLarge, "index.json"},
		"MillionEntries": {with(func(f map[string]string) {
			f["index.json"] = `{"manifests":[` + strings.Repeat(`{},`, 1_000_000) + `{}]}`
		}), image.ErrTooLarge, "names 1000001 manifests"},
		"FlippedImage":     {with(func(f map[string]string) { f[rootBlob] = f[rootBlob][1:] + "}" }), image.ErrDigestMismatch, "make the archive again"},
		"FlippedObject":    {with(func(f map[string]string) { f[layerBlob] = f[layerBlob][:100] + "x" + f[layerBlob][101:] }), image.ErrDigestMismatch, "make the archive again"},
		"FlippedSignature": {with(func(f map[string]string) { f[sigBlob] = `{"tag":2}` }), image.ErrDigestMismatch, "make the archive again"},
		"NoImage":          {with(func(f map[string]string) { delete(f, rootBlob) }), image.ErrUnsupported, "is not in the archive"},
		"NoObject":         {with(func(f map[string]string) { delete(f, layerBlob) }), image.ErrUnsupported, "is not in the archive"},
		"NoSignature":      {with(func(f map[string]string) { delete(f, sigBlob) }), image.ErrUnsupported, "signatures: "},
		"Climbs":           {with(func(f map[string]string) { f["../../escape"] = "x" }), image.ErrUnsupported, `"../../escape", which leads out of it`},
		"ClimbsInside":     {with(func(f map[string]string) { f["blobs/../../../escape"] = "x" }), image.ErrUnsupported, "leads out of it"},
		"Absolute":         {with(func(f map[string]string) { f["/escape"] = "x" }), image.ErrUnsupported, "leads out of it"},
		"Control":          {with(func(f map[string]string) { f["../\x1b[31m\n"] = "x" }), image.ErrUnsupported, "leads out of it"},
		"Twice":            {append(imagetest.Tar(t, imagetest.File{Name: "index.json", Data: []byte("{}")})[:1024], archive(t, files)...), image.ErrAmbiguous, `"index.json" twice`},
		"TwiceOtherwise":   {append(imagetest.Tar(t, imagetest.File{Name: "./index.json", Data: []byte("{}")})[:1024], archive(t, files)...), image.ErrAmbiguous, "twice"},
		"Symlink":          {headers(tar.Header{Name: rootBlob, Typeflag: tar.TypeSymlink, Linkname: secret}), image.ErrUnsupported, "is no file"},
		"SymlinkDir":       {headers(tar.Header{Name: "blobs", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}), image.ErrUnsupported, "is no file"},
		"Hardlink":         {headers(tar.Header{Name: rootBlob, Typeflag: tar.TypeLink, Linkname: secret}), image.ErrUnsupported, "is no file"},
		"Device":           {headers(tar.Header{Name: rootBlob, Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 5}), image.ErrUnsupported, "is no file"},
		"Fifo":             {headers(tar.Header{Name: "index.json", Typeflag: tar.TypeFifo}), image.ErrUnsupported, "is no file"},
		"Huge":             {imagetest.Gzip(t, hugeEntry(t, layerBlob, 8<<30)), image.ErrTooLarge, "of 8589934592 bytes"},
		"Entries":          {imagetest.Tar(t, many...), image.ErrTooLarge, "more than 16384 entries"},
		"Sparse":           {sparseNamed(t, layerBlob), image.ErrDigestMismatch, ""},
		"NoName":           {reindexed(func(d []ocispec.Descriptor) []ocispec.Descriptor { d[0].Annotations = nil; return d }), image.ErrReference, "--as REF"},
		"TagOnly": {reindexed(func(d []ocispec.Descriptor) []ocispec.Descriptor {
			d[0].Annotations = map[string]string{ocispec.AnnotationRefName: "v1"}
			return d
		}), image.ErrReference, `an image "v1"`},
		"BadName": {reindexed(func(d []ocispec.Descriptor) []ocispec.Descriptor {
			d[0].Annotations = map[string]string{ocispec.AnnotationRefName: "x/\x1b[2J\nY"}
			return d
		}), image.ErrReference, ""},
		"OtherDigest": {reindexed(func(d []ocispec.Descriptor) []ocispec.Descriptor {
			d[0].Annotations = map[string]string{ocispec.AnnotationRefName: "ghcr.io/acme/x@" + digest.FromString("x").String()}
			return d
		}), image.ErrDigestMismatch, "stands for"},
		"Nothing":  {reindexed(func([]ocispec.Descriptor) []ocispec.Descriptor { return nil }), image.ErrUnsupported, "no image in it"},
		"Negative": {reindexed(func(d []ocispec.Descriptor) []ocispec.Descriptor { d[0].Size = -1; return d }), image.ErrTooLarge, ""},
		"Claim":    {reindexed(func(d []ocispec.Descriptor) []ocispec.Descriptor { d[0].Size = 8 << 30; return d }), image.ErrTooLarge, ""},
		"BadDigest": {reindexed(func(d []ocispec.Descriptor) []ocispec.Descriptor {
			d[0].Digest = "sha256:../../../../etc/passwd"
			return d
		}), image.ErrUnsupported, "digest"},
		"Names": {reindexed(func(d []ocispec.Descriptor) []ocispec.Descriptor {
			for i := range 257 {
				named := d[0]
				named.Annotations = map[string]string{ocispec.AnnotationRefName: fmt.Sprintf("ghcr.io/acme/count:v%d", i)}
				d = append(d, named)
			}
			return d
		}), image.ErrTooLarge, "more than 256 images"},
		"Again": {reindexed(func(d []ocispec.Descriptor) []ocispec.Descriptor {
			for len(d) < 10_000 {
				d = append(d, d[0])
			}
			return d
		}), nil, ""},
	}
	store, dir := cached(t, imagetest.Start(t))
	before := tree(t, dir)
	for name, tt := range all {
		if tt.want == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			_, err := store.ImportArchive(t.Context(), bytes.NewReader(tt.archive), image.ImportOptions{})
			wantError(t, err, tt.want, tt.says)
			if after := tree(t, dir); !slices.Equal(before, after) {
				t.Errorf("the cache has changed:\n%q\n%q", before, after)
			}
		})
	}
	// Many names for one thing are no reason to read it as often.
	start := time.Now()
	if _, err := store.ImportArchive(t.Context(), bytes.NewReader(all["Again"].archive), image.ImportOptions{}); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	wantOffline(t, store, ref, three())
}

// hugeEntry is the head of a file that says it is that large.
func hugeEntry(t testing.TB, name string, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), make([]byte, 1<<16)...)
}

// A directory is no more believed than an archive: what is no file in it is not opened, wherever it leads.
func TestHostileDirectories(t *testing.T) {
	_, files := exported(t)
	var index ocispec.Index
	if err := json.Unmarshal([]byte(files["index.json"]), &index); err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join("blobs/sha256", index.Manifests[0].Digest.Encoded())
	outside := filepath.Join(t.TempDir(), "copy")
	write(t, outside, files[filepath.ToSlash(blob)])
	for name, replace := range map[string]func(string) error{
		"Symlink":       func(path string) error { return os.Symlink(outside, path) },
		"SymlinkInside": func(path string) error { return os.Symlink("../../index.json", path) },
		"Fifo":          func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"Directory":     func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		for _, at := range []string{blob, "index.json", "oci-layout"} {
			t.Run(name+"/"+filepath.Base(at)[:5], func(t *testing.T) {
				dir := hostsDir(t, files)
				if err := os.Remove(filepath.Join(dir, at)); err != nil {
					t.Fatal(err)
				}
				if err := replace(filepath.Join(dir, at)); err != nil {
					t.Fatal(err)
				}
				store, cache := cached(t, imagetest.Start(t))
				before := tree(t, cache)
				_, err := store.Import(t.Context(), dir, image.ImportOptions{})
				wantError(t, err, image.ErrUnsupported, "")
				if after := tree(t, cache); !slices.Equal(before, after) {
					t.Errorf("the cache has changed:\n%q\n%q", before, after)
				}
			})
		}
	}
}

const importing = "BPFVOL_TEST_IMPORTING" // directory, archive

// Who is killed while importing leaves a cache in which the image is there as a whole or not at all, and nothing
// half-written once the next one has opened it.
func TestKillDuringImport(t *testing.T) {
	if v := os.Getenv(importing); v != "" {
		dir, from, _ := strings.Cut(v, ",")
		for {
			s, err := image.Open(image.Options{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Import(t.Context(), from, image.ImportOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Prune(t.Context(), image.PruneOptions{All: true, Settling: -1}); err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
	}
	ref, files := exported(t)
	from := filepath.Join(t.TempDir(), "x.tar")
	write(t, from, string(archive(t, files)))
	dir := filepath.Join(t.TempDir(), "oci")
	there := 0
	for i := range 12 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKillDuringImport$", "-test.timeout=30s")
		cmd.Env = append(os.Environ(), importing+"="+dir+","+from, "TMPDIR="+t.TempDir()) // who is killed cleans up nothing
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(60+7*i) * time.Millisecond)
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
		s, err := image.Open(image.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "ingest", "*")); len(left) > 0 {
			t.Errorf("half-written blobs stay: %q", left)
		}
		list, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > 0 {
			there++
			wantOffline(t, s, ref, three())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("the image was there %d times of 12", there)
}

// An import does not make the node trust a registry less or more: with one, newer signatures are still found.
func TestImportedImageStillAsksItsRegistry(t *testing.T) {
	reg := imagetest.Start(t)
	ref := signed(t, reg)
	root, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/referrers/") || strings.Contains(r.URL.Path, ".sig") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	if err := root.Export(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	reg.Intercept(nil)
	store := imagetest.Store(t, reg.Host)
	if _, err := store.ImportArchive(t.Context(), &b, image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	wantOffline(t, store, ref, nil)
	if root, err = resolve(t, store, ref, image.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, root, true, three())
}
