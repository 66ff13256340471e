// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"debug/elf"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BuildInput is the object for one architecture.
type BuildInput struct {
	Name string // file name
	Arch string // GOARCH
	ELF  []byte
}

// BuildOptions say how an image is written.
type BuildOptions struct {
	BPFMan  bool                         // as bpfman reads it: an archive of one file, and labels in a config
	Labels  map[string]map[string]string // by Arch
	Created time.Time                    // zero: not recorded, so that the same objects give the same digest
}

// Build writes an image into the layout, tagged by ref, as an index with a manifest for each object. The result
// depends on its arguments alone.
func (s *Store) Build(_ context.Context, ref Reference, objects []BuildInput, opts BuildOptions) (ocispec.Descriptor, error) {
	d, err := held(s, func() (ocispec.Descriptor, error) { return s.build(ref, objects, opts) })
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("build %s: %w", ref, err)
	}
	return d, nil
}

func (s *Store) build(ref Reference, objects []BuildInput, opts BuildOptions) (ocispec.Descriptor, error) {
	if ref.Digest != "" {
		return ocispec.Descriptor{}, fmt.Errorf("%w: a digest comes out of the build; give a tag", ErrReference)
	}
	if len(objects) == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("%w: give at least one", ErrNoObject)
	}
	objects = slices.Clone(objects)
	slices.SortFunc(objects, func(a, b BuildInput) int { return cmp.Compare(a.Arch, b.Arch) })
	index := referrersIndex(nil)
	if !opts.BPFMan {
		index.ArtifactType = ArtifactType
	}
	for i, o := range objects {
		if i > 0 && objects[i-1].Arch == o.Arch {
			return ocispec.Descriptor{}, fmt.Errorf("%w: %s and %s are both for %s; say the architecture of each", ErrAmbiguous, quote(objects[i-1].Name), quote(o.Name), o.Arch)
		}
		if err := checkInput(o, s.limits); err != nil {
			return ocispec.Descriptor{}, err
		}
		write := s.buildArtifact
		if opts.BPFMan {
			write = s.buildBPFMan
		}
		d, err := write(o, opts)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: o.Arch}
		index.Manifests = append(index.Manifests, d)
	}
	root, err := s.layout.putJSON(ocispec.MediaTypeImageIndex, index)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	byDigest := digestName(ref, root.Digest)
	err = s.layout.update(func(index *ocispec.Index) bool {
		if i := named(index, byDigest); i >= 0 && !isLocal(index.Manifests[i]) {
			return set(index, cacheName(ref), root, false) // a registry has these very bytes
		}
		set(index, byDigest, root, true)
		return set(index, cacheName(ref), root, true) || true
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return root, s.proofs.addLocal(byDigest) // also when it has been pushed
}

// checkInput refuses an object that this package would refuse to read.
func checkInput(o BuildInput, l Limits) error {
	machine, kind, err := header(o.ELF)
	switch {
	case err != nil || machine != elf.EM_BPF || kind != elf.ET_REL:
		return fmt.Errorf("%w: %s; give the output of clang -target bpf -c", ErrNoObject, quote(o.Name))
	case int64(len(o.ELF)) > l.Object:
		return fmt.Errorf("%w: %s has %d bytes, allowed are %d", ErrTooLarge, quote(o.Name), len(o.ELF), l.Object)
	case o.Arch == "":
		return fmt.Errorf("%w: %s has no architecture", ErrPlatform, quote(o.Name))
	case bigEndian(o.ELF) != slices.Contains([]string{"s390x", "ppc64", "mips", "mips64"}, o.Arch):
		return fmt.Errorf("%w: the byte order of %s is not that of %s", ErrPlatform, quote(o.Name), o.Arch)
	}
	return nil
}

// buildArtifact writes an OCI 1.1 artifact: the object as it is, whose digest is the layer's.
func (s *Store) buildArtifact(o BuildInput, opts BuildOptions) (ocispec.Descriptor, error) {
	empty := ocispec.DescriptorEmptyJSON
	layer := describe(ObjectMediaType, o.ELF)
	layer.Annotations = map[string]string{ocispec.AnnotationTitle: path.Base(o.Name)}
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: ArtifactType,
		Config:       ocispec.Descriptor{MediaType: empty.MediaType, Digest: empty.Digest, Size: empty.Size},
		Layers:       []ocispec.Descriptor{layer},
		Annotations:  created(opts),
	}
	for k, v := range opts.Labels[o.Arch] {
		if m.Annotations == nil {
			m.Annotations = map[string]string{}
		}
		m.Annotations[k] = v
	}
	if err := s.layout.put(m.Config, empty.Data); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := s.layout.put(layer, o.ELF); err != nil {
		return ocispec.Descriptor{}, err
	}
	d, err := s.layout.putJSON(m.MediaType, m)
	d.ArtifactType = ArtifactType
	return d, err
}

func created(opts BuildOptions) map[string]string {
	if opts.Created.IsZero() {
		return nil
	}
	return map[string]string{ocispec.AnnotationCreated: opts.Created.UTC().Format(time.RFC3339)}
}

// buildBPFMan writes an image as bpfman reads it: bpfman's docs/developer-guide/shipping-bytecode.md.
func (s *Store) buildBPFMan(o BuildInput, opts BuildOptions) (ocispec.Descriptor, error) {
	archive, err := tarFile(path.Base(o.Name), o.ELF, opts.Created)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	if _, err := zw.Write(archive); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := zw.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	layer := describe(ocispec.MediaTypeImageLayerGzip, packed.Bytes())
	if err := s.layout.put(layer, packed.Bytes()); err != nil {
		return ocispec.Descriptor{}, err
	}
	image := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: o.Arch},
		Config:   ocispec.ImageConfig{Labels: opts.Labels[o.Arch]},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(archive)}},
	}
	if !opts.Created.IsZero() {
		at := opts.Created.UTC()
		image.Created = &at
	}
	config, err := s.layout.putJSON(ocispec.MediaTypeImageConfig, image)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.layout.putJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{layer},
	})
}

func tarFile(name string, data []byte, at time.Time) ([]byte, error) {
	if at.IsZero() {
		at = time.Unix(0, 0)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: at.UTC()}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
