// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Export writes the image with its signatures as an archive of an OCI layout, which Import, oras, skopeo and docker load
// read: from the cache where it is there, else from the registry. It is whole: with the objects for every architecture.
// The same image and signatures give the same bytes.
func (r *Root) Export(ctx context.Context, w io.Writer) error {
	if _, err := held(r.store, func() (any, error) { return nil, r.export(ctx, w) }); err != nil {
		return fmt.Errorf("export %s: %w", r.Reference, err)
	}
	return nil
}

func (r *Root) export(ctx context.Context, w io.Writer) error {
	// The registry may have newer ones than the cache; where it cannot be asked, those of the cache will do.
	_, asked := r.signatures(ctx, r.pull != nil)
	found, err := r.store.keptSignatures(r.Reference, r.Digest)
	if err != nil || found == nil && asked != nil && !r.local {
		return fmt.Errorf("signatures: %w", cmp.Or(err, asked))
	}
	if found == nil {
		found = &sources{}
	}
	e := exporter{root: r, tar: tar.NewWriter(w), seen: map[digest.Digest]bool{}}
	index := referrersIndex(nil)
	name := r.Reference.Name()
	add := func(ref string, d ocispec.Descriptor) error {
		d = plain(d)
		d.Annotations = map[string]string{ocispec.AnnotationRefName: ref}
		if d.Digest == r.Digest {
			d.Annotations[annotationImageName] = ref
		}
		index.Manifests = append(index.Manifests, d)
		return e.document(ctx, d)
	}
	if err := e.file(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+ocispec.ImageLayoutVersion+`"}`)); err != nil {
		return err
	}
	ref := name + "@" + r.Digest.String()
	if r.Reference.Tag != "" {
		ref = name + ":" + r.Reference.Tag
	}
	if err := add(ref, r.Descriptor); err != nil {
		return err
	}
	if found.tagged != nil {
		if err := add(name+":"+signatureTag(r.Digest), *found.tagged); err != nil {
			return err
		}
	}
	for _, d := range found.referrers {
		index.Manifests = append(index.Manifests, plain(d))
		if err := e.document(ctx, d); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := e.file(ocispec.ImageIndexFile, raw); err != nil {
		return err
	}
	return e.tar.Close()
}

// exporter writes each blob of an image once.
type exporter struct {
	root *Root
	tar  *tar.Writer
	seen map[digest.Digest]bool
}

func (e *exporter) file(name string, data []byte) error {
	h := tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if err := e.tar.WriteHeader(&h); err != nil {
		return err
	}
	_, err := e.tar.Write(data)
	return err
}

func (e *exporter) blob(ctx context.Context, d ocispec.Descriptor, most int64) ([]byte, error) {
	b, err := e.root.fetch(ctx, plain(d), most)
	if err != nil || e.seen[d.Digest] {
		return b, err
	}
	e.seen[d.Digest] = true
	return b, e.file(path.Join(ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded()), b)
}

// document writes a manifest or index and what it refers to.
func (e *exporter) document(ctx context.Context, d ocispec.Descriptor) error {
	l := e.root.store.limits
	raw, err := e.blob(ctx, d, l.Manifest)
	if err != nil {
		return err
	}
	m, err := parseDocument(d.MediaType, raw)
	if err != nil {
		return err
	}
	for _, child := range m.Manifests {
		if isManifest(child.MediaType) {
			if err := e.document(ctx, child); err != nil {
				return err
			}
		}
	}
	if m.Config != nil {
		if _, err := e.blob(ctx, *m.Config, l.Config); err != nil {
			return err
		}
	}
	for _, layer := range m.Layers {
		if _, err := e.blob(ctx, layer, layerLimit(layer, l)); err != nil {
			return err
		}
	}
	return nil
}
