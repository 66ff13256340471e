// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// What cosign v2.6.5 writes: pkg/types/media.go, pkg/oci/remote/write.go.
const (
	simpleSigning      = "application/vnd.dev.cosign.simplesigning.v1+json"
	cosignArtifactType = "application/vnd.dev.cosign.artifact.sig.v1+json"
	bundlePrefix       = "application/vnd.dev.sigstore.bundle"
)

// Signatures returns what may prove who made the image: from the cache where the registry was asked before, unless
// fresh is set or the pull policy is Always. No signature and no error means that the registry has none. Where the
// registry may not be asked the error wraps ErrNotCached.
func (r *Root) Signatures(ctx context.Context, fresh bool) ([]Signature, error) {
	kind := "cached"
	if fresh || r.policy == volume.PullAlways {
		kind = "fresh"
	}
	return once(ctx, r.store, func(ctx context.Context) ([]Signature, error) {
		return r.signatures(ctx, kind == "fresh")
	}, "signatures", kind, r.Reference.Name(), r.Digest.String(), r.identity())
}

func (r *Root) signatures(ctx context.Context, fresh bool) ([]Signature, error) {
	offline := r.pull == nil
	if offline && fresh && !r.local {
		return nil, ErrNotCached
	}
	if offline || !fresh {
		kept, err := r.keptSignatures()
		if err != nil {
			return nil, err
		}
		if kept == nil && offline && !r.local {
			return nil, ErrNotCached
		}
		if kept != nil {
			sigs, err := r.collect(ctx, *kept)
			// What the cache has lost or spoiled may have been replaced at the registry: then look for what it has now.
			if lost := errors.Is(err, ErrNotFound) || errors.Is(err, ErrDigestMismatch); !lost || offline {
				return sigs, err
			}
		}
	}
	if r.local {
		return nil, nil
	}
	found, err := r.findSignatures(ctx)
	if err != nil {
		return nil, err
	}
	sigs, err := r.collect(ctx, found)
	if err != nil {
		return nil, err
	}
	return sigs, r.store.keepSignatures(r.Reference, r.Digest, found)
}

// sources are the manifests that may carry signatures of one digest.
type sources struct {
	tagged    *ocispec.Descriptor // the manifest under cosign's .sig tag
	referrers []ocispec.Descriptor
}

func signatureTag(d digest.Digest) string { return referrersTag(d) + ".sig" }
func referrersTag(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// findSignatures asks for both places at once. A mirror that has none in one of them may just not have copied it, so the
// registry itself has the last word; where it cannot be reached, what the mirror has in the other place will do.
func (r *Root) findSignatures(ctx context.Context) (sources, error) {
	var s sources
	var listed []ocispec.Descriptor
	var unheard [2]error // of a registry whose mirror has none
	g, ctx := newGroup(ctx)
	look := func(unheard *error, op func(context.Context, *remote.Repository) (found bool, err error)) {
		g.Go(func() error {
			answered := false
			err := r.pull.try(ctx, func(ctx context.Context, repo *remote.Repository) error {
				found, err := op(ctx, repo)
				if err == nil && !found {
					err = ErrNotFound
				}
				answered = answered || errors.Is(err, ErrNotFound) || errors.Is(err, errdef.ErrNotFound)
				return err
			})
			if errors.Is(err, ErrNotFound) {
				return nil
			}
			if answered && errors.Is(err, ErrUnavailable) {
				*unheard = err
				return nil
			}
			return err
		})
	}
	look(&unheard[0], func(ctx context.Context, repo *remote.Repository) (bool, error) {
		d, raw, err := fetchManifest(ctx, repo, signatureTag(r.Digest))
		if err != nil {
			return false, err
		}
		s.tagged = &d
		return true, r.store.layout.put(d, raw)
	})
	look(&unheard[1], func(ctx context.Context, repo *remote.Repository) (bool, error) {
		listed = nil
		err := repo.Referrers(ctx, r.Descriptor, "", func(page []ocispec.Descriptor) error {
			listed = append(listed, page...)
			if most := r.store.limits.Referrers; len(listed) > most {
				return fmt.Errorf("%w: it has more than %d referrers; remove old ones from the registry", ErrTooLarge, most)
			}
			return nil
		})
		return len(r.store.candidates(listed)) > 0, err
	})
	if err := g.Wait(); err != nil {
		return sources{}, err
	}
	s.referrers = r.store.candidates(listed)
	if s.tagged == nil && len(s.referrers) == 0 {
		return s, cmp.Or(unheard[:]...)
	}
	return s, nil
}

// candidates returns the referrers worth fetching, the first so many.
func (s *Store) candidates(listed []ocispec.Descriptor) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	for _, d := range listed {
		if mayHoldSignature(d) && d.Size <= s.limits.Signature && len(out) < s.limits.Signatures {
			out = append(out, plain(d))
		}
	}
	return within(out, s.limits.AllSignatures, func(d ocispec.Descriptor) int64 { return d.Size })
}

// within returns those of all that together have no more than so many bytes, in their order. Where not all fit it is the
// largest that do not: a signature is small, and must not be crowded out of memory by what is none.
func within[T any](all []T, room int64, size func(T) int64) []T {
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(size(all[a]), size(all[b])) })
	fit := 0
	for fit < len(order) {
		if room -= max(size(all[order[fit]]), 0); room < 0 {
			break
		}
		fit++
	}
	order = order[:fit]
	slices.Sort(order)
	out := make([]T, fit)
	for i, from := range order {
		out[i] = all[from]
	}
	return out
}

// mayHoldSignature sorts out referrers that are certainly something else. Some registries say the type of the config
// instead of the artifact type, so what is left is told apart by its layers.
func mayHoldSignature(d ocispec.Descriptor) bool {
	switch d.ArtifactType {
	case "", cosignArtifactType, ocispec.MediaTypeEmptyJSON, ocispec.MediaTypeImageConfig:
		return isManifest(d.MediaType)
	}
	return strings.HasPrefix(d.ArtifactType, bundlePrefix) && isManifest(d.MediaType)
}

// collect reads the signatures out of their manifests: first what there is, then as much of it as may be in memory.
func (r *Root) collect(ctx context.Context, s sources) ([]Signature, error) {
	found := make([][]material, 1+len(s.referrers))
	g, gctx := newGroup(ctx)
	g.SetLimit(8)
	if s.tagged != nil {
		g.Go(func() (err error) {
			found[0], err = r.materials(gctx, *s.tagged, true)
			return err
		})
	}
	for i, d := range s.referrers {
		g.Go(func() (err error) {
			found[1+i], err = r.materials(gctx, d, false)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := slices.Concat(found...)
	all = within(all[:min(len(all), r.store.limits.Signatures)], r.store.limits.AllSignatures, material.size)
	sigs := make([]Signature, len(all))
	g, gctx = newGroup(ctx)
	g.SetLimit(8)
	for i, m := range all {
		g.Go(func() (err error) {
			sigs[i] = Signature{Format: m.format, Annotations: m.layer.Annotations}
			sigs[i].Payload, err = r.fetch(gctx, plain(m.layer), r.store.limits.Signature)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return sigs, nil
}

// material is a layer that holds a signature.
type material struct {
	format Format
	layer  ocispec.Descriptor
}

// size is how many bytes the signature will have.
func (m material) size() int64 {
	n := m.layer.Size
	for k, v := range m.layer.Annotations {
		n += int64(len(k) + len(v))
	}
	return n
}

// materials returns the signatures of one manifest. Of a .sig tag the newest count, which cosign appends last. A referrer
// that is listed and gone, or is of another subject, has none.
func (r *Root) materials(ctx context.Context, d ocispec.Descriptor, tagged bool) ([]material, error) {
	l := r.store.limits
	raw, err := r.fetch(ctx, d, l.Manifest)
	if !tagged && errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := parseDocument(d.MediaType, raw)
	if err != nil {
		return nil, err
	}
	if !tagged && (m.Subject == nil || m.Subject.Digest != r.Digest) {
		return nil, nil
	}
	var found []material
	for _, layer := range m.Layers[max(0, len(m.Layers)-l.Signatures):] {
		format := FormatTag
		switch {
		case layer.Size > l.Signature:
			continue
		case layer.MediaType == simpleSigning && !tagged:
			format = FormatReferrer
		case strings.HasPrefix(layer.MediaType, bundlePrefix) && !tagged:
			format = FormatBundle
		case layer.MediaType != simpleSigning:
			continue
		}
		found = append(found, material{format, layer})
	}
	return found, nil
}

// keepSignatures records where the signatures of d are, and so that the registry was asked.
func (s *Store) keepSignatures(ref Reference, d digest.Digest, found sources) error {
	list, err := s.layout.putJSON(ocispec.MediaTypeImageIndex, referrersIndex(found.referrers))
	if err != nil {
		return err
	}
	return s.layout.update(func(index *ocispec.Index) bool {
		changed := set(index, ref.Name()+":"+referrersTag(d), list, false)
		if found.tagged == nil {
			return unset(index, ref.Name()+":"+signatureTag(d)) || changed
		}
		return set(index, ref.Name()+":"+signatureTag(d), *found.tagged, false) || changed
	})
}

func referrersIndex(manifests []ocispec.Descriptor) ocispec.Index {
	if manifests == nil {
		manifests = []ocispec.Descriptor{}
	}
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}
}

// keptSignatures returns what keepSignatures recorded; nil where the registry has to be asked.
func (r *Root) keptSignatures() (*sources, error) {
	kept, err := r.store.keptSignatures(r.Reference, r.Digest)
	if !errors.Is(err, ErrDigestMismatch) {
		return kept, err
	}
	if r.pull != nil {
		return nil, nil // the registry has it again
	}
	return nil, fmt.Errorf("%w; pull or build it again", err)
}

func (s *Store) keptSignatures(ref Reference, d digest.Digest) (*sources, error) {
	now, err := s.layout.snapshot()
	if err != nil {
		return nil, err
	}
	list, found := now.byName[ref.Name()+":"+referrersTag(d)]
	if !found {
		return nil, nil
	}
	raw, err := s.layout.read(plain(list), s.limits.Manifest)
	if errors.Is(err, errAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("%w: list of referrers in the cache", ErrUnsupported)
	}
	kept := sources{referrers: s.candidates(index.Manifests)}
	if tagged, found := now.byName[ref.Name()+":"+signatureTag(d)]; found {
		tagged = plain(tagged)
		kept.tagged = &tagged
	}
	return &kept, nil
}
