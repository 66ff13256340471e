// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// PullOptions say how an image may be fetched.
type PullOptions struct {
	Policy  volume.PullPolicy // IfNotPresent where empty
	Keyring Keyring           // asked before the store's; may be nil
}

// Resolve asks once what ref stands for: the registry where the policy says so, else the cache. With Always a tag is
// asked for at the registry each time, and a registry that does not answer is an error; a digest cannot change, so it
// is taken from the cache under any policy. Images built here are found unless the policy is Always. What the cache has
// from a registry is for those alone whose credentials may pull it; see proofs.
func (s *Store) Resolve(ctx context.Context, ref Reference, opts PullOptions) (*Root, error) {
	orDefault(&opts.Policy, volume.PullIfNotPresent)
	p := s.newPull(ref, opts.Keyring)
	root, err := once(ctx, s, func(ctx context.Context) (*Root, error) {
		return s.resolve(ctx, p, ref, opts.Policy)
	}, "resolve", ref.String(), string(opts.Policy), p.identity)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	own := *root
	return &own, nil
}

func (s *Store) resolve(ctx context.Context, p *pull, ref Reference, policy volume.PullPolicy) (*Root, error) {
	if policy == volume.PullAlways && ref.Digest == "" {
		return s.fetchRoot(ctx, p, ref, policy, ref.target())
	}
	d, found, err := s.layout.find(cacheName(ref))
	if err != nil {
		return nil, err
	}
	if !found && policy == volume.PullNever {
		return nil, fmt.Errorf("%w, and the pull policy is Never; pull it once with another policy", ErrNotCached)
	}
	if !found {
		return s.fetchRoot(ctx, p, ref, policy, ref.target())
	}
	root := &Root{Reference: ref, Descriptor: plain(d), store: s, policy: policy, pull: p, local: isLocal(d)}
	if !root.local {
		if root.proof, err = s.prove(ctx, p, ref, d.Digest, policy); err != nil {
			return nil, err
		}
	}
	if policy == volume.PullNever || root.local {
		root.pull = nil
	}
	s.layout.touch(root.Digest)
	root.Raw, err = s.layout.read(root.Descriptor, s.limits.Manifest)
	switch {
	case err == nil:
		_, err = parseDocument(root.MediaType, root.Raw)
		return root, err
	case root.pull == nil && errors.Is(err, errAbsent):
		return nil, fmt.Errorf("%w; pull or build it again", ErrNotCached)
	case root.pull == nil:
		return nil, fmt.Errorf("%w; pull or build it again", err)
	}
	// The cache lost or spoiled it: fetch the same bytes again, whatever the tag says by now.
	repaired, fetchErr := s.fetchRoot(ctx, p, ref, policy, d.Digest.String())
	if fetchErr != nil && errors.Is(err, ErrDigestMismatch) {
		return nil, fmt.Errorf("%w, and it cannot be fetched again: %v", err, fetchErr)
	}
	if errors.Is(fetchErr, ErrNotFound) {
		return s.fetchRoot(ctx, p, ref, policy, ref.target())
	}
	return repaired, fetchErr
}

// cacheName is the entry of index.json under which a reference is found.
func cacheName(ref Reference) string {
	if ref.Digest != "" {
		return digestName(ref, ref.Digest)
	}
	return ref.Name() + ":" + ref.Tag
}

// digestName is the entry of an image by its digest, whatever tag it was asked for; proofs are found by it, too.
func digestName(ref Reference, d digest.Digest) string { return ref.Name() + "@" + d.String() }

// fetchRoot gets target, a tag or a digest, from the registry and records what came.
func (s *Store) fetchRoot(ctx context.Context, p *pull, ref Reference, policy volume.PullPolicy, target string) (*Root, error) {
	root := &Root{Reference: ref, store: s, policy: policy, pull: p}
	ask := p
	if _, err := digest.Parse(target); err != nil {
		if ask, err = p.resolvers(); err != nil {
			return nil, err
		}
	}
	var used string
	err := ask.search(ctx, func(ctx context.Context, r *remote.Repository) (err error) {
		used = p.hashOf(r)
		root.Descriptor, root.Raw, err = fetchManifest(ctx, r, target)
		if err != nil {
			return err
		}
		_, err = parseDocument(root.MediaType, root.Raw)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.layout.put(root.Descriptor, root.Raw); err != nil {
		return nil, err
	}
	byDigest := digestName(ref, root.Digest)
	err = s.layout.update(func(index *ocispec.Index) bool {
		changed := set(index, byDigest, root.Descriptor, false)
		if ref.Digest == "" {
			changed = set(index, cacheName(ref), root.Descriptor, false) || changed
		}
		return changed
	})
	if err != nil {
		return nil, err
	}
	root.proof, err = s.proofs.add(byDigest, used)
	return root, err
}

// fetchManifest gets a manifest or index by tag or digest in one request. The client has limited and hashed it.
func fetchManifest(ctx context.Context, r *remote.Repository, target string) (ocispec.Descriptor, []byte, error) {
	d, rc, err := r.FetchReference(ctx, target)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	defer rc.Close()
	raw, err := io.ReadAll(rc)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: describe("", raw).Digest, Size: int64(len(raw))}, raw, nil
}

func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}
