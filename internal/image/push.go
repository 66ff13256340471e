// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"
)

// PushOptions say how an image is pushed.
type PushOptions struct {
	Keyring  Keyring      // asked before the store's; may be nil
	Progress func(string) // told of each blob and manifest, in words, one at a time; may be nil
}

// Push sends an image of the layout, with the signatures that are there, to the registry that ref names. Mirrors are
// not written to.
func (s *Store) Push(ctx context.Context, ref Reference, opts PushOptions) (ocispec.Descriptor, error) {
	d, err := held(s, func() (ocispec.Descriptor, error) { return s.push(ctx, ref, opts) })
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("push %s: %w", ref, err)
	}
	return d, nil
}

func (s *Store) push(ctx context.Context, ref Reference, opts PushOptions) (ocispec.Descriptor, error) {
	root, found, err := s.layout.find(cacheName(ref))
	if err != nil {
		return root, err
	}
	if !found {
		return root, fmt.Errorf("%w; build it first", ErrNotCached)
	}
	root = plain(root)
	kept, err := s.keptSignatures(ref, root.Digest)
	if err != nil {
		return root, err
	}
	if kept == nil {
		kept = &sources{}
	}
	var mu sync.Mutex // oras sends several at once
	progress := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		if opts.Progress != nil {
			opts.Progress(what)
		}
	}
	err = s.writable(ref, opts.Keyring).try(ctx, func(ctx context.Context, r *remote.Repository) error {
		p := pusher{layout: s.layout, to: r, limits: s.limits, progress: progress}
		if err := p.graph(ctx, root, ref.Tag); err != nil {
			return err
		}
		if kept.tagged != nil {
			if err := p.signatures(ctx, *kept.tagged, signatureTag(root.Digest)); err != nil {
				return err
			}
		}
		return p.referrers(ctx, root, kept.referrers)
	})
	if err != nil {
		return root, err
	}
	return root, s.layout.update(func(index *ocispec.Index) bool {
		changed := false
		for _, d := range slices.Clone(index.Manifests) {
			name := d.Annotations[ocispec.AnnotationRefName]
			here := strings.HasPrefix(name, ref.Name()+":") || strings.HasPrefix(name, ref.Name()+"@")
			if here && d.Digest == root.Digest && isLocal(d) {
				changed = set(index, name, d, false) || changed
			}
		}
		return changed
	})
}

// writable is the way to the host itself, without its mirrors.
func (s *Store) writable(ref Reference, k Keyring) *pull {
	p := s.newPull(ref, k)
	p.endpoints = p.endpoints[len(p.endpoints)-1:]
	return p
}

// pusher sends from the layout to one repository.
type pusher struct {
	layout   *layout
	to       *remote.Repository
	limits   Limits
	progress func(string)
}

// graph sends d and all that it refers to, and gives it a tag where there is one.
func (p *pusher) graph(ctx context.Context, d ocispec.Descriptor, tag string) error {
	opts := oras.CopyGraphOptions{
		MaxMetadataBytes: p.limits.Manifest,
		PostCopy: func(_ context.Context, d ocispec.Descriptor) error {
			p.progress("sent " + d.MediaType + " " + d.Digest.String())
			return nil
		},
		OnCopySkipped: func(_ context.Context, d ocispec.Descriptor) error {
			p.progress("registry has " + d.MediaType + " " + d.Digest.String())
			return nil
		},
	}
	err := oras.CopyGraph(ctx, hashed{p.layout, p.limits}, p.to, d, opts)
	if side := new(oras.CopyError); errors.As(err, &side) {
		err = side.Err
	}
	if err != nil {
		return err
	}
	if tag == "" {
		return nil
	}
	raw, err := p.layout.read(d, p.limits.Manifest)
	if err != nil {
		return err
	}
	return p.to.PushReference(ctx, d, bytes.NewReader(raw), tag)
}

// referrers sends manifests that have subject as their subject.
func (p *pusher) referrers(ctx context.Context, subject ocispec.Descriptor, manifests []ocispec.Descriptor) error {
	if len(manifests) == 0 {
		return nil
	}
	// Asking first teaches oras whether the registry keeps the list itself, as OCI 1.1 has it.
	if err := p.to.Referrers(ctx, subject, "", func([]ocispec.Descriptor) error { return nil }); err != nil {
		return err
	}
	for _, m := range manifests {
		if err := p.graph(ctx, m, ""); err != nil {
			return err
		}
	}
	return nil
}

// hashed is the layout as oras copies from it: what was hashed on this very read.
type hashed struct {
	*layout
	limits Limits
}

func (h hashed) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := h.read(d, max(h.limits.Object, h.limits.Manifest))
	if errors.Is(err, errAbsent) {
		return nil, fmt.Errorf("%w: %s", ErrNotCached, d.Digest)
	}
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (h hashed) Exists(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	return h.blobs.Exists(ctx, d)
}
