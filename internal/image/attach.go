// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"
)

const bundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// AttachSignature stores a signature beside the image that ref names by digest, in the form that cosign writes: into
// the layout where the image was built here and not pushed yet, else into its registry.
func (s *Store) AttachSignature(ctx context.Context, ref Reference, sig Signature) error {
	if _, err := held(s, func() (any, error) { return nil, s.attach(ctx, ref, sig) }); err != nil {
		return fmt.Errorf("sign %s: %w", ref, err)
	}
	return nil
}

func (s *Store) attach(ctx context.Context, ref Reference, sig Signature) error {
	if ref.Digest == "" {
		return fmt.Errorf("%w: a signature is for a digest; write %s@sha256:<hex>", ErrReference, ref.Name())
	}
	here, found, err := s.layout.find(cacheName(ref))
	if err != nil {
		return err
	}
	if found && isLocal(here) {
		return s.attachHere(ref, plain(here), sig)
	}
	err = s.writable(ref, nil).try(ctx, func(ctx context.Context, r *remote.Repository) error {
		subject, _, err := fetchManifest(ctx, r, ref.Digest.String())
		if err != nil {
			return err
		}
		p := pusher{layout: s.layout, to: r, limits: s.limits, progress: func(string) {}}
		d, err := s.putSignature(subject, nil, sig)
		if err != nil {
			return err
		}
		if sig.Format == FormatTag {
			return p.signatures(ctx, d, signatureTag(ref.Digest))
		}
		return p.referrers(ctx, subject, []ocispec.Descriptor{d})
	})
	if err != nil {
		return err
	}
	// The registry knows more than the cache now: ask it again.
	return s.layout.update(func(index *ocispec.Index) bool {
		changed := unset(index, ref.Name()+":"+referrersTag(ref.Digest))
		return unset(index, ref.Name()+":"+signatureTag(ref.Digest)) || changed
	})
}

// attachHere stores a signature in the layout.
func (s *Store) attachHere(ref Reference, subject ocispec.Descriptor, sig Signature) error {
	kept, err := s.keptSignatures(ref, subject.Digest)
	if err != nil {
		return err
	}
	if kept == nil {
		kept = &sources{}
	}
	if sig.Format != FormatTag {
		d, err := s.putSignature(subject, nil, sig)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(kept.referrers, func(r ocispec.Descriptor) bool { return r.Digest == d.Digest }) {
			kept.referrers = append(kept.referrers, d)
		}
		return s.keepSignatures(ref, subject.Digest, *kept)
	}
	var layers []ocispec.Descriptor
	if kept.tagged != nil {
		if layers, err = s.layout.layers(*kept.tagged, s.limits); err != nil {
			return err
		}
	}
	d, err := s.putSignature(subject, layers, sig)
	if err != nil {
		return err
	}
	kept.tagged = &d
	return s.keepSignatures(ref, subject.Digest, *kept)
}

// layers returns the layers of a manifest in the layout.
func (l *layout) layers(d ocispec.Descriptor, limits Limits) ([]ocispec.Descriptor, error) {
	raw, err := l.read(d, limits.Manifest)
	if err != nil {
		return nil, err
	}
	m, err := parseDocument(d.MediaType, raw)
	if err != nil {
		return nil, err
	}
	return m.Layers, nil
}

// putSignature writes the manifest that carries sig into the layout, with what it refers to. Before are the layers
// that stand under the .sig tag already.
func (s *Store) putSignature(subject ocispec.Descriptor, before []ocispec.Descriptor, sig Signature) (ocispec.Descriptor, error) {
	mediaType := simpleSigning
	if sig.Format == FormatBundle {
		mediaType = bundleMediaType
	}
	layer := describe(mediaType, sig.Payload)
	if err := s.layout.put(layer, sig.Payload); err != nil {
		return ocispec.Descriptor{}, err
	}
	if sig.Format != FormatBundle {
		layer.Annotations = sig.Annotations
	}
	plainSubject := plain(subject)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Layers:    []ocispec.Descriptor{layer},
		Subject:   &plainSubject,
	}
	var err error
	switch sig.Format {
	case FormatTag:
		return putTagged(s.layout, addLayers(before, layer))
	case FormatReferrer:
		m.ArtifactType = cosignArtifactType
		m.Config, err = s.layout.putJSON(cosignArtifactType, signatureConfig(m.Layers))
	case FormatBundle:
		m.ArtifactType = bundleMediaType
		m.Annotations = map[string]string{
			"dev.sigstore.bundle.content":       "dsse-envelope",
			"dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
		}
		empty := ocispec.DescriptorEmptyJSON
		m.Config = ocispec.Descriptor{MediaType: empty.MediaType, Digest: empty.Digest, Size: empty.Size}
		err = s.layout.put(m.Config, empty.Data)
	default:
		return ocispec.Descriptor{}, fmt.Errorf("%w: signature format %q; use %s, %s or %s", ErrUnsupported, sig.Format, FormatBundle, FormatTag, FormatReferrer)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.layout.putJSON(m.MediaType, m)
}

// putTagged writes the manifest for a .sig tag, which has no subject.
func putTagged(l *layout, layers []ocispec.Descriptor) (ocispec.Descriptor, error) {
	config, err := l.putJSON(ocispec.MediaTypeImageConfig, signatureConfig(layers))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.putJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    layers,
	})
}

// addLayers appends the signatures that are not there yet. Many signatures have the same payload, so they are told
// apart by their annotations.
func addLayers(before []ocispec.Descriptor, more ...ocispec.Descriptor) []ocispec.Descriptor {
	out := slices.Clone(before)
	for _, layer := range more {
		if !slices.ContainsFunc(out, func(d ocispec.Descriptor) bool {
			return d.Digest == layer.Digest && maps.Equal(d.Annotations, layer.Annotations)
		}) {
			out = append(out, layer)
		}
	}
	return out
}

// signatureConfig is the config that go-containerregistry writes for cosign: it lists the layers once more.
func signatureConfig(layers []ocispec.Descriptor) any {
	ids := make([]digest.Digest, len(layers))
	history := make([]map[string]string, len(layers))
	for i, l := range layers {
		ids[i] = l.Digest
		history[i] = map[string]string{"created": "0001-01-01T00:00:00Z"}
	}
	return map[string]any{
		"architecture": "", "os": "", "created": "0001-01-01T00:00:00Z", "config": map[string]any{},
		"history": history, "rootfs": ocispec.RootFS{Type: "layers", DiffIDs: ids},
	}
}

// signatures sends the signatures of a .sig manifest, beside those that stand under the tag in the registry.
func (p *pusher) signatures(ctx context.Context, d ocispec.Descriptor, tag string) error {
	there, raw, err := fetchManifest(ctx, p.to, tag)
	switch {
	case err != nil && !errors.Is(classify(p.to.Reference.Registry, err), ErrNotFound):
		return err
	case err == nil && there.Digest != d.Digest:
		if d, err = p.merge(there, raw, d); err != nil {
			return err
		}
	}
	return p.graph(ctx, d, tag)
}

// merge puts a manifest with the signatures of both into the layout. The blobs of theirs stay where they are.
func (p *pusher) merge(there ocispec.Descriptor, raw []byte, ours ocispec.Descriptor) (ocispec.Descriptor, error) {
	theirs, err := parseDocument(there.MediaType, raw)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	own, err := p.layout.layers(ours, p.limits)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return putTagged(p.layout, addLayers(theirs.Layers, own...))
}
