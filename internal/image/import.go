// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What others write into an index.json.
const (
	annotationImageName = "io.containerd.image.name" // the reference in full: ctr, docker
	annotationKind      = "kind"                     // cosign v2.6.5, pkg/oci/layout
	kindSignatures      = "dev.cosignproject.cosign/sigs"
	kindAttestations    = "dev.cosignproject.cosign/atts"
)

const (
	maxArchive        = 2 << 30 // bytes of an archive, unpacked
	maxArchiveEntries = 1 << 14
	maxImages         = 256
	maxIndexed        = 64 << 20 // bytes of manifests that an index.json names
)

// ImportOptions say how an archive is taken in.
type ImportOptions struct {
	// As is what the archive's one image is called; the zero value leaves that to the archive.
	As       Reference
	Progress func(read int64) // told now and then how many bytes were read; may be nil
}

// Import takes the images of an OCI layout, a directory or an archive of one, into the cache, with the signatures that
// are there. Every byte is hashed before anything is kept; where something is wrong nothing is.
func (s *Store) Import(ctx context.Context, from string, opts ImportOptions) ([]Cached, error) {
	info, err := os.Stat(from)
	if err != nil {
		return nil, err
	}
	var out []Cached
	if info.IsDir() {
		out, err = held(s, func() ([]Cached, error) { return s.importDir(ctx, from, opts) })
	} else {
		var f *os.File
		if f, err = os.Open(from); err != nil {
			return nil, err
		}
		defer f.Close()
		out, err = held(s, func() ([]Cached, error) { return s.importArchive(ctx, f, opts) })
	}
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return out, nil
}

// ImportArchive is Import of what r has.
func (s *Store) ImportArchive(ctx context.Context, r io.Reader, opts ImportOptions) ([]Cached, error) {
	out, err := held(s, func() ([]Cached, error) { return s.importArchive(ctx, r, opts) })
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return out, nil
}

// importArchive unpacks an archive to where half-written things are, and imports that. Whoever is killed leaves it there,
// and the next one who is alone removes it.
func (s *Store) importArchive(ctx context.Context, r io.Reader, opts ImportOptions) (_ []Cached, err error) {
	if err := os.MkdirAll(s.layout.path(ingestDir), 0o700); err != nil {
		return nil, cacheError(err)
	}
	dir, err := os.MkdirTemp(s.layout.path(ingestDir), "import-*")
	if err != nil {
		return nil, cacheError(err)
	}
	defer func() { err = errors.Join(err, cacheError(os.RemoveAll(dir))) }()
	if err := s.unpack(ctx, r, dir, opts); err != nil {
		return nil, err
	}
	return s.importDir(ctx, dir, opts)
}

// unpack writes the files of an OCI layout that an archive has into dir, each blob where it hashes to its name. Names of
// an archive are matched, never followed.
func (s *Store) unpack(ctx context.Context, r io.Reader, dir string, opts ImportOptions) error {
	plain, err := decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir, string(digest.SHA256)), 0o700); err != nil {
		return cacheError(err)
	}
	limited := &io.LimitedReader{R: plain, N: maxArchive}
	archive := tar.NewReader(limited)
	seen := map[string]bool{}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := archive.Next()
		if limited.N <= 0 {
			return fmt.Errorf("%w: archive has more than %d bytes", ErrTooLarge, int64(maxArchive))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: not a whole archive", ErrUnsupported)
		}
		if opts.Progress != nil {
			opts.Progress(maxArchive - limited.N)
		}
		name := path.Clean(h.Name)
		switch {
		case len(seen) == maxArchiveEntries:
			return fmt.Errorf("%w: archive has more than %d entries", ErrTooLarge, maxArchiveEntries)
		case !filepath.IsLocal(h.Name):
			return fmt.Errorf("%w: archive has the entry %s, which leads out of it", ErrUnsupported, quote(h.Name))
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg:
			return fmt.Errorf("%w: archive has the entry %s, which is no file", ErrUnsupported, quote(h.Name))
		case seen[name]:
			return fmt.Errorf("%w: archive has the entry %s twice", ErrAmbiguous, quote(h.Name))
		}
		seen[name] = true
		if err := s.unpackFile(archive, name, h.Size, dir); err != nil {
			return err
		}
	}
}

// unpackFile keeps a file where it is one of an OCI layout's.
func (s *Store) unpackFile(r io.Reader, name string, size int64, dir string) error {
	encoded, isBlob := strings.CutPrefix(name, "blobs/sha256/")
	blob := digest.NewDigestFromEncoded(digest.SHA256, encoded)
	isBlob = isBlob && blob.Validate() == nil
	if !isBlob && name != ocispec.ImageIndexFile && name != ocispec.ImageLayoutFile {
		return nil // docker's manifest.json, say
	}
	if most := s.mostBytes(); size > most {
		return fmt.Errorf("%w: archive has the file %s of %d bytes, allowed are %d; put nothing but bytecode images into it", ErrTooLarge, quote(name), size, most)
	}
	b, err := io.ReadAll(r) // a sparse file is as large as it says
	if err != nil {
		return fmt.Errorf("%w: not a whole archive", ErrUnsupported)
	}
	if isBlob && digest.FromBytes(b) != blob {
		return fmt.Errorf("%w: %s in the archive; make the archive again", ErrDigestMismatch, blob)
	}
	return cacheError(os.WriteFile(filepath.Join(dir, filepath.FromSlash(name)), b, 0o600))
}

// mostBytes is how large a blob can be.
func (s *Store) mostBytes() int64 {
	return max(s.limits.Manifest, s.limits.Config, s.limits.Layer, s.limits.Object, s.limits.Signature)
}

func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReader(r)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case isZstd(head):
		zr, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("%w: not zstd as it should be", ErrUnsupported)
		}
		return zr.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		zr, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("%w: not gzip as it should be", ErrUnsupported)
		}
		return zr, nil
	}
	return io.NopCloser(b), nil
}

// foreign is an OCI layout that somebody else wrote.
type foreign struct {
	root  *os.Root
	store *Store
}

// read returns a file. What is no file, or leads out of the directory, is not opened.
func (f foreign) read(name string, most int64) ([]byte, error) {
	info, err := f.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errAbsent
	}
	if err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is no file", ErrUnsupported, quote(name))
	}
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // in case it has become a pipe
	if err != nil {
		return nil, fmt.Errorf("%w: %s cannot be read", ErrUnsupported, quote(name))
	}
	defer file.Close()
	if info.Size() > most {
		return nil, fmt.Errorf("%w: %s has %d bytes, allowed are %d", ErrTooLarge, quote(name), info.Size(), most)
	}
	b, err := io.ReadAll(io.LimitReader(file, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, quote(name), most)
	}
	return b, err
}

// blob returns the bytes that d describes, hashed.
func (f foreign) blob(d ocispec.Descriptor, most int64) ([]byte, error) {
	if d.Size < 0 || d.Size > most {
		return nil, tooLarge(d, most)
	}
	if d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("%w: digest %s", ErrUnsupported, quote(d.Digest.String()))
	}
	b, err := f.read(path.Join(ocispec.ImageBlobsDir, string(digest.SHA256), d.Digest.Encoded()), most)
	switch {
	case errors.Is(err, errAbsent):
		return nil, fmt.Errorf("%w: %s is not in the archive; make the archive again, with all that the image refers to", ErrUnsupported, d.Digest)
	case err != nil:
		return nil, err
	case digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size:
		return nil, fmt.Errorf("%w: %s in the archive; make the archive again", ErrDigestMismatch, d.Digest)
	}
	return b, nil
}

func (f foreign) has(d digest.Digest) bool {
	_, err := f.root.Lstat(path.Join(ocispec.ImageBlobsDir, string(digest.SHA256), d.Encoded()))
	return d.Validate() == nil && err == nil
}

// document reads a manifest or index.
func (f foreign) document(d ocispec.Descriptor) (*document, error) {
	raw, err := f.blob(d, f.store.limits.Manifest)
	if err != nil {
		return nil, err
	}
	return parseDocument(d.MediaType, raw)
}

// importing is what an archive has, before any of it is kept.
type importing struct {
	foreign
	blobs     map[digest.Digest]ocispec.Descriptor // that were found whole
	images    []imported
	tagged    map[digest.Digest]ocispec.Descriptor   // .sig manifests, by what they sign
	referrers map[digest.Digest][]ocispec.Descriptor // by their subject
	checked   map[digest.Digest]bool                 // manifests, and all that they refer to
}

// imported is an image of an archive.
type imported struct {
	ocispec.Descriptor
	name string // as the archive has it; may be empty, or a tag alone
}

func (s *Store) importDir(ctx context.Context, dir string, opts ImportOptions) ([]Cached, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	a := &importing{
		foreign: foreign{root, s}, blobs: map[digest.Digest]ocispec.Descriptor{},
		tagged: map[digest.Digest]ocispec.Descriptor{}, referrers: map[digest.Digest][]ocispec.Descriptor{},
		checked: map[digest.Digest]bool{},
	}
	if err := a.readIndex(); err != nil {
		return nil, err
	}
	names, err := a.call(opts.As)
	if err != nil {
		return nil, err
	}
	for _, i := range a.images {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := a.image(i.Descriptor); err != nil {
			return nil, fmt.Errorf("image %s: %w", names[i.Digest][0], err)
		}
		if err := a.signatures(i.Digest); err != nil {
			return nil, fmt.Errorf("image %s: signatures: %w", names[i.Digest][0], err)
		}
	}
	return a.keep(ctx, names)
}

// readIndex sorts what index.json names into images and what is about them.
func (a *importing) readIndex() error {
	raw, err := a.read(ocispec.ImageLayoutFile, 1<<10)
	var layout ocispec.ImageLayout
	if errors.Is(err, errAbsent) || err == nil && (json.Unmarshal(raw, &layout) != nil || layout.Version != ocispec.ImageLayoutVersion) {
		return fmt.Errorf("%w: not an OCI layout; make one by bpfvol cache export, oras cp --to-oci-layout or docker save (25 or later)", ErrUnsupported)
	}
	if err != nil {
		return err
	}
	if raw, err = a.read(ocispec.ImageIndexFile, a.store.limits.Manifest); errors.Is(err, errAbsent) {
		return fmt.Errorf("%w: not an OCI layout: it has no %s", ErrUnsupported, ocispec.ImageIndexFile)
	} else if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return fmt.Errorf("%w: %s is not JSON as it should be", ErrUnsupported, ocispec.ImageIndexFile)
	}
	if len(index.Manifests) > maxArchiveEntries {
		return fmt.Errorf("%w: %s names %d manifests, allowed are %d", ErrTooLarge, ocispec.ImageIndexFile, len(index.Manifests), maxArchiveEntries)
	}
	var total int64
	var unnamed []imported
	parts := map[digest.Digest]bool{} // of an image, which oras lists once more
	for _, d := range index.Manifests {
		name := cmp.Or(d.Annotations[annotationImageName], d.Annotations[ocispec.AnnotationRefName])
		kind := d.Annotations[annotationKind]
		_, _, about := splitName("x:" + name[strings.LastIndexByte(name, ':')+1:])
		d = plain(d)
		if kind == kindAttestations || !isIndex(d.MediaType) && !isManifest(d.MediaType) {
			continue
		}
		if total += d.Size; d.Size < 0 || total > maxIndexed {
			return fmt.Errorf("%w: manifests that %s names have more than %d bytes", ErrTooLarge, ocispec.ImageIndexFile, maxIndexed)
		}
		m, err := a.document(d)
		if err != nil {
			return fmt.Errorf("%s: %w", cmp.Or(quote(name), d.Digest.String()), err)
		}
		for _, child := range m.Manifests {
			parts[child.Digest] = true
		}
		switch {
		case about != "" && isIndex(d.MediaType):
			a.referrers[about] = append(a.referrers[about], a.store.candidates(m.Manifests)...)
		case about != "" || kind == kindSignatures:
			if about = cmp.Or(about, a.signedDigest(m)); about != "" {
				a.tagged[about] = d
			}
		case m.Subject != nil:
			a.referrers[m.Subject.Digest] = append(a.referrers[m.Subject.Digest], d)
		case name == "":
			unnamed = append(unnamed, imported{Descriptor: d})
		default:
			a.images = append(a.images, imported{Descriptor: d, name: name})
		}
	}
	if len(a.images) == 0 {
		a.images = slices.DeleteFunc(unnamed, func(i imported) bool { return parts[i.Digest] })
	}
	if len(a.images) == 0 {
		return fmt.Errorf("%w: no image in it", ErrUnsupported)
	}
	return nil
}

// signedDigest is what the first signature of a manifest says that it is about. It is not believed: whoever verifies the
// signature compares it again.
func (a *importing) signedDigest(m *document) digest.Digest {
	for _, l := range m.Layers {
		if l.MediaType != simpleSigning {
			continue
		}
		var payload struct {
			Critical struct {
				Image struct {
					Digest digest.Digest `json:"docker-manifest-digest"`
				} `json:"image"`
			} `json:"critical"`
		}
		raw, err := a.blob(plain(l), a.store.limits.Signature)
		if err == nil && json.Unmarshal(raw, &payload) == nil && payload.Critical.Image.Digest.Validate() == nil {
			return payload.Critical.Image.Digest
		}
	}
	return ""
}

// call gives each image its references. Several names may stand for one image.
func (a *importing) call(as Reference) (map[digest.Digest][]Reference, error) {
	out := map[digest.Digest][]Reference{}
	count := 0
	add := func(i imported, ref Reference) error {
		if ref.Digest != "" && ref.Digest != i.Digest {
			return fmt.Errorf("%w: %s stands for %s in the archive", ErrDigestMismatch, ref, i.Digest)
		}
		if slices.Contains(out[i.Digest], ref) {
			return nil
		}
		if count++; count > maxImages {
			return fmt.Errorf("%w: it names more than %d images; make several archives", ErrTooLarge, maxImages)
		}
		out[i.Digest] = append(out[i.Digest], ref)
		return nil
	}
	if as != (Reference{}) {
		first := a.images[0]
		for _, i := range a.images {
			if i.Digest != first.Digest {
				return nil, fmt.Errorf("%w: it has several images, %s and %s; --as names one: export them one by one", ErrAmbiguous,
					quote(cmp.Or(first.name, first.Digest.String())), quote(cmp.Or(i.name, i.Digest.String())))
			}
		}
		a.images = a.images[:1]
		return out, add(first, as)
	}
	for _, i := range a.images {
		if !strings.Contains(i.name, "/") {
			return nil, fmt.Errorf("%w: it calls an image %s, which names no repository; say what it is: --as REF", ErrReference, quote(i.name))
		}
		ref, err := ParseReference(i.name)
		if err != nil {
			return nil, err
		}
		if err := add(i, ref); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(a.images, func(x, y imported) int { return strings.Compare(string(x.Digest), string(y.Digest)) })
	a.images = slices.CompactFunc(a.images, func(x, y imported) bool { return x.Digest == y.Digest })
	return out, nil
}

// whole notes a blob that is there and is what it should be.
func (a *importing) whole(d ocispec.Descriptor, most int64) error {
	d = plain(d)
	if _, seen := a.blobs[d.Digest]; seen {
		return nil
	}
	if _, err := a.blob(d, most); err != nil {
		return err
	}
	a.blobs[d.Digest] = d
	return nil
}

// image checks that an image is there as a whole. Of an index the manifests for other machines may be missing, but not
// all.
func (a *importing) image(d ocispec.Descriptor) error {
	if !isIndex(d.MediaType) || a.checked[d.Digest] {
		return a.manifest(d)
	}
	if err := a.manifest(d); err != nil {
		return err
	}
	m, err := a.document(d)
	if err != nil {
		return err
	}
	found := false
	for _, child := range m.Manifests {
		if !isManifest(child.MediaType) || !a.has(child.Digest) {
			continue
		}
		found = true
		if err := a.manifest(child); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%w: it is an index, and none of what it names is in the archive", ErrUnsupported)
	}
	return nil
}

// manifest checks a document and the blobs that it refers to, once.
func (a *importing) manifest(d ocispec.Descriptor) error {
	if a.checked[d.Digest] {
		return nil
	}
	if err := a.whole(d, a.store.limits.Manifest); err != nil {
		return err
	}
	m, err := a.document(plain(d))
	if err != nil {
		return err
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("%w: it has %d layers, allowed are %d", ErrTooLarge, len(m.Layers), maxLayers)
	}
	if m.Config != nil {
		if err := a.whole(*m.Config, a.store.limits.Config); err != nil {
			return err
		}
	}
	for _, l := range m.Layers {
		if err := a.whole(l, layerLimit(l, a.store.limits)); err != nil {
			return err
		}
	}
	a.checked[d.Digest] = true
	return nil
}

// signatures checks what is about an image.
func (a *importing) signatures(d digest.Digest) error {
	if tagged, found := a.tagged[d]; found {
		if err := a.manifest(tagged); err != nil {
			return err
		}
	}
	about := slices.CompactFunc(slices.SortedFunc(slices.Values(a.referrers[d]), func(x, y ocispec.Descriptor) int {
		return strings.Compare(string(x.Digest), string(y.Digest))
	}), func(x, y ocispec.Descriptor) bool { return x.Digest == y.Digest })
	if most := a.store.limits.Referrers; len(about) > most {
		return fmt.Errorf("%w: it has more than %d referrers; remove old ones", ErrTooLarge, most)
	}
	kept := about[:0]
	for _, r := range about {
		m, err := a.document(r)
		if err != nil {
			return err
		}
		// Others are about the image, too (an SBOM), and of no use here.
		if r.ArtifactType = m.ArtifactType; !mayHoldSignature(r) {
			continue
		}
		if err := a.manifest(r); err != nil {
			return err
		}
		kept = append(kept, plain(r))
	}
	a.referrers[d] = kept
	return nil
}

// keep moves what was found into the cache, and names it there last.
func (a *importing) keep(ctx context.Context, names map[digest.Digest][]Reference) ([]Cached, error) {
	s := a.store
	for _, d := range a.blobs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := a.blob(d, s.mostBytes())
		if err != nil {
			return nil, err
		}
		if err := s.layout.put(d, b); err != nil {
			return nil, err
		}
	}
	var refs []Reference
	for _, i := range a.images {
		for _, ref := range names[i.Digest] {
			ref.Digest = i.Digest
			refs = append(refs, ref)
			if err := a.keepSignatures(ref); err != nil {
				return nil, err
			}
			// Before it is named: an image without a record would be asked about, and there may be no registry.
			if err := s.proofs.addLocal(cacheName(ref)); err != nil {
				return nil, err
			}
		}
	}
	err := s.layout.update(func(index *ocispec.Index) bool {
		for _, i := range a.images {
			for _, ref := range names[i.Digest] {
				ref.Digest = ""
				entries := []string{digestName(ref, i.Digest)}
				if ref.Tag != "" {
					entries = append(entries, cacheName(ref))
				}
				for _, name := range entries {
					set(index, name, i.Descriptor, false)
					mark(index, name, annotationImported)
				}
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		s.layout.touch(ref.Digest)
	}
	all, err := s.List(ctx)
	return slices.DeleteFunc(all, func(c Cached) bool {
		return !slices.ContainsFunc(refs, func(r Reference) bool { return r.Name() == c.Repository && r.Digest == c.Digest })
	}), err
}

// keepSignatures records the signatures of an image beside those that the cache has. Where the archive has none the cache
// knows that, too: without a registry nobody else will say so.
func (a *importing) keepSignatures(ref Reference) error {
	s := a.store
	kept, err := s.keptSignatures(ref, ref.Digest)
	if err != nil && !errors.Is(err, ErrDigestMismatch) {
		return err
	}
	if kept == nil {
		kept = &sources{}
	}
	for _, r := range a.referrers[ref.Digest] {
		if !slices.ContainsFunc(kept.referrers, func(k ocispec.Descriptor) bool { return k.Digest == r.Digest }) {
			kept.referrers = append(kept.referrers, r)
		}
	}
	tagged, found := a.tagged[ref.Digest]
	switch {
	case found && kept.tagged != nil && kept.tagged.Digest != tagged.Digest:
		theirs, err := s.layout.layers(tagged, s.limits)
		if err != nil {
			return err
		}
		ours, err := s.layout.layers(*kept.tagged, s.limits)
		if err != nil {
			return err
		}
		if tagged, err = putTagged(s.layout, addLayers(ours, theirs...)); err != nil {
			return err
		}
		kept.tagged = &tagged
	case found:
		kept.tagged = &tagged
	}
	return s.keepSignatures(ref, ref.Digest, *kept)
}
