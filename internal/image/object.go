// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
)

const (
	gadgetObject = "application/vnd.gadget.ebpf.program.v1+binary"
	maxLayers    = 128
	labelFile    = "io.ebpf.filename"
)

// notObjects are layers of known types that hold no object and need not be fetched.
var notObjects = []string{
	"application/vnd.gadget.wasm.program.v1+binary",
	"application/vnd.gadget.btfgen.v1+binary",
	"application/vnd.in-toto+json",
}

// Object returns the one BPF object of the image, from the cache or the registry. Where ctx ends first, the error
// wraps ErrPulling and the pull goes on.
func (r *Root) Object(ctx context.Context) (Object, error) {
	o, err := once(ctx, r.store, r.object, "object", r.Reference.Name(), r.Digest.String(), r.identity())
	if err != nil {
		return Object{}, fmt.Errorf("image %s: %w", r.Reference, err)
	}
	return o, nil
}

// identity is part of the key of shared work: nobody is given what another's credentials fetched.
func (r *Root) identity() string {
	if r.pull == nil {
		return "offline"
	}
	return r.pull.identity
}

// Platforms lists what the image has objects for, as "linux/amd64"; nothing where it does not say.
func (r *Root) Platforms() ([]string, error) {
	d, err := parseDocument(r.MediaType, r.Raw)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", r.Reference, err)
	}
	return d.platforms(), nil
}

func (r *Root) object(ctx context.Context) (Object, error) {
	m, d, err := r.manifest(ctx)
	if err != nil {
		return Object{}, err
	}
	o := Object{Root: r.Digest, Manifest: d.Digest}
	layers := objectLayers(m.Layers)
	if err := checkLayers(layers, r.store.limits); err != nil {
		return Object{}, err
	}
	blobs := make([][]byte, len(layers))
	g, gctx := newGroup(ctx)
	g.SetLimit(4)
	g.Go(func() (err error) {
		o.Labels, err = r.labels(gctx, m)
		return err
	})
	for i, l := range layers {
		g.Go(func() (err error) {
			blobs[i], err = r.part(gctx, l, layerLimit(l, r.store.limits))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return Object{}, err
	}
	x := newExtractor(r.store.limits)
	for i, b := range blobs {
		if err := x.layer(b, layers[i].Annotations[ocispec.AnnotationTitle]); err != nil {
			return Object{}, err
		}
	}
	f, err := pick(x.files, o.Labels[labelFile])
	if err != nil {
		return Object{}, err
	}
	o.Name, o.ELF, o.Digest = f.name, f.data, digest.FromBytes(f.data)
	return o, nil
}

// manifest returns the manifest for the store's architecture.
func (r *Root) manifest(ctx context.Context) (*document, ocispec.Descriptor, error) {
	doc, err := parseDocument(r.MediaType, r.Raw)
	if err != nil || !isIndex(r.MediaType) {
		return doc, r.Descriptor, err
	}
	d, err := doc.choose(r.store.arch)
	if err != nil {
		return nil, d, err
	}
	raw, err := r.part(ctx, plain(d), r.store.limits.Manifest)
	if err != nil {
		return nil, d, err
	}
	doc, err = parseDocument(d.MediaType, raw)
	return doc, d, err
}

// labels returns what the image says of itself: the config's labels, or an artifact's annotations.
func (r *Root) labels(ctx context.Context, m *document) (map[string]string, error) {
	if m.Config == nil || m.Config.MediaType != ocispec.MediaTypeImageConfig && m.Config.MediaType != dockerConfig {
		return m.Annotations, nil
	}
	raw, err := r.part(ctx, plain(*m.Config), r.store.limits.Config)
	if err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("%w: its config is not JSON as it should be", ErrUnsupported)
	}
	if a := config.Architecture; a != "" && a != "unknown" && a != r.store.arch && !isIndex(r.MediaType) {
		return nil, fmt.Errorf("%w: it was built for linux/%s, this node is linux/%s; build it for both", ErrPlatform, quote(a), r.store.arch)
	}
	return config.Config.Labels, nil
}

// objectLayers returns the layers that may hold the object: those of a type for objects where there are any, else all.
func objectLayers(layers []ocispec.Descriptor) []ocispec.Descriptor {
	var named, others []ocispec.Descriptor
	for _, l := range layers {
		switch {
		case l.MediaType == ObjectMediaType || l.MediaType == gadgetObject:
			named = append(named, l)
		case !slices.Contains(notObjects, l.MediaType):
			others = append(others, l)
		}
	}
	if len(named) > 0 {
		return named
	}
	return others
}

// checkLayers refuses what the manifest says is too much, before any of it is fetched.
func checkLayers(layers []ocispec.Descriptor, l Limits) error {
	if len(layers) > maxLayers {
		return fmt.Errorf("%w: it has %d layers, allowed are %d", ErrTooLarge, len(layers), maxLayers)
	}
	var total int64
	for _, d := range layers {
		if most := layerLimit(d, l); d.Size < 0 || d.Size > most {
			return tooLarge(d, most)
		}
		total += d.Size
	}
	if total > l.Object {
		return fmt.Errorf("%w: its layers have %d bytes together, allowed are %d", ErrTooLarge, total, l.Object)
	}
	return nil
}

func layerLimit(d ocispec.Descriptor, l Limits) int64 {
	if d.MediaType == ObjectMediaType || d.MediaType == gadgetObject {
		return l.Object
	}
	return l.Layer
}

// fetch returns the bytes that d describes.
func (r *Root) fetch(ctx context.Context, d ocispec.Descriptor, most int64) ([]byte, error) {
	return r.store.fetch(ctx, r.pull, d, most)
}

// fetch returns the bytes that d describes, from the cache or else by p, which is nil where the network may not be
// used. Spoiled bytes in the cache are replaced. Of those who want the same of a repository, the first one fetches it;
// where his credentials are not good enough, the next one tries.
func (s *Store) fetch(ctx context.Context, p *pull, d ocispec.Descriptor, most int64) ([]byte, error) {
	b, cacheErr := s.cached(d, most)
	if cacheErr == nil || !replaceable(cacheErr) {
		return b, cacheErr
	}
	if p == nil {
		return nil, fmt.Errorf("%w; pull or build it again", cacheErr)
	}
	err := s.inTurn(ctx, p.name+"@"+d.Digest.String(), func() (err error) {
		if b, cacheErr = s.cached(d, most); cacheErr == nil || !replaceable(cacheErr) {
			return cacheErr
		}
		b, err = p.fetch(ctx, d)
		if err != nil && errors.Is(cacheErr, ErrDigestMismatch) {
			return fmt.Errorf("%w, and it cannot be fetched again: %v", cacheErr, err)
		}
		if err != nil {
			return err
		}
		return s.layout.put(d, b)
	})
	return b, err
}

// cached returns bytes of the cache.
func (s *Store) cached(d ocispec.Descriptor, most int64) ([]byte, error) {
	b, err := s.layout.read(d, most)
	if errors.Is(err, errAbsent) {
		return nil, fmt.Errorf("%w: %s", ErrNotCached, d.Digest)
	}
	return b, err
}

// replaceable reports whether a registry can make an error of the cache good.
func replaceable(err error) bool {
	return errors.Is(err, ErrNotCached) || errors.Is(err, ErrDigestMismatch)
}

// fetch returns the bytes that d describes, from the registry.
func (p *pull) fetch(ctx context.Context, d ocispec.Descriptor) (b []byte, err error) {
	err = p.try(ctx, func(ctx context.Context, r *remote.Repository) error {
		rc, err := r.Fetch(ctx, d)
		if err != nil && !typed(err) && !errors.Is(err, errdef.ErrNotFound) && ctx.Err() == nil {
			// The client knows every other error: oras saw headers of something else.
			return fmt.Errorf("%w: sent by registry %s; push the image again", ErrDigestMismatch, r.Reference.Registry)
		}
		if err != nil {
			return err
		}
		defer rc.Close()
		b, err = readBlob(rc, d)
		return err
	})
	return b, err
}

// readBlob reads what d describes, whose size was compared with a limit before. It takes that much memory and no more;
// content.ReadAll, for which a size may be anything, takes twice as much.
func readBlob(r io.Reader, d ocispec.Descriptor) ([]byte, error) {
	b := make([]byte, d.Size)
	v := content.NewVerifyReader(r, d)
	if _, err := io.ReadFull(v, b); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, v.Verify()
}
