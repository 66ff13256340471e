// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Cached is an image that the cache has under one repository's name.
type Cached struct {
	Repository string        `json:"repository"`
	Tags       []string      `json:"tags"` // that stood for it when they were last asked
	Digest     digest.Digest `json:"digest"`
	Origin     Origin        `json:"origin"`
	// Size is what image and signatures take on disk. Images share blobs, so the sum may be more than the cache takes.
	Size int64 `json:"size"`
	// Signatures are their formats; null where the registry was never asked for them. They are not checked here.
	Signatures []Format  `json:"signatures"`
	Used       time.Time `json:"used"` // last, by whoever asked for the image
}

// Origin says where an image of the cache came from, and so whether it can be had again.
type Origin string

const (
	OriginPulled   Origin = "pulled"
	OriginBuilt    Origin = "built" // here, and no registry has it
	OriginImported Origin = "imported"
)

// References are the names under which the image is found.
func (c Cached) References() []string {
	if len(c.Tags) == 0 {
		return []string{c.Repository + "@" + c.Digest.String()}
	}
	var out []string
	for _, tag := range c.Tags {
		out = append(out, c.Repository+":"+tag)
	}
	return out
}

// List returns the images of the cache, by repository, the last used first.
func (s *Store) List(ctx context.Context) ([]Cached, error) {
	now, err := s.layout.snapshot()
	if err != nil {
		return nil, err
	}
	var out []Cached
	for _, e := range s.entries(now.index) {
		c := e.Cached
		blobs := map[digest.Digest]int64{}
		for _, d := range e.documents {
			s.reach(d, blobs)
		}
		for _, size := range blobs {
			c.Size += size
		}
		c.Signatures, err = s.formats(ctx, e)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func (s *Store) formats(ctx context.Context, e *entry) ([]Format, error) {
	ref, err := ParseReference(e.Repository + "@" + e.Digest.String())
	if err != nil {
		return nil, nil // a foreign layout, which calls images otherwise
	}
	root := Root{Reference: ref, Descriptor: e.root, store: s, policy: volume.PullNever}
	sigs, err := root.signatures(ctx, false)
	switch {
	case errors.Is(err, ErrNotCached):
		return nil, nil
	case err != nil && typed(err):
		return nil, nil // spoiled: a publish says so
	case err != nil:
		return nil, err
	}
	out := []Format{}
	for _, sig := range sigs {
		out = append(out, sig.Format)
	}
	return out, nil
}

// entry is an image of the cache with all that index.json has about it.
type entry struct {
	Cached
	root      ocispec.Descriptor
	documents []ocispec.Descriptor // the image, and what may prove who made it
	names     []string             // in index.json
}

// entries groups what index.json has by repository and image.
func (s *Store) entries(index ocispec.Index) []*entry {
	type key struct {
		repository string
		digest     digest.Digest
	}
	byKey := map[key]*entry{}
	var out []*entry
	for _, d := range index.Manifests {
		name := d.Annotations[ocispec.AnnotationRefName]
		repository, tag, about := splitName(name)
		k := key{repository, cmp.Or(about, d.Digest)}
		e := byKey[k]
		if e == nil {
			e = &entry{Cached: Cached{Repository: repository, Tags: []string{}, Digest: k.digest, Origin: OriginPulled}}
			byKey[k], out = e, append(out, e)
		}
		e.names = append(e.names, name)
		e.documents = append(e.documents, plain(d))
		if about != "" && about != d.Digest {
			continue
		}
		e.root = plain(d)
		if tag != "" {
			e.Tags = append(e.Tags, tag)
		}
		switch {
		case isLocal(d):
			e.Origin = OriginBuilt
		case isImported(d) && e.Origin == OriginPulled:
			e.Origin = OriginImported
		}
	}
	// Signatures of an image that is not there are nothing by themselves.
	out = slices.DeleteFunc(out, func(e *entry) bool { return e.root.Digest == "" })
	for _, e := range out {
		slices.Sort(e.Tags)
		e.Used = s.layout.used(e.Digest)
	}
	slices.SortStableFunc(out, func(a, b *entry) int {
		return cmp.Or(strings.Compare(a.Repository, b.Repository), b.Used.Compare(a.Used), strings.Compare(string(a.Digest), string(b.Digest)))
	})
	return out
}

// splitName takes a name of index.json apart: the repository, and the tag, or the digest that it is about.
func splitName(name string) (repository, tag string, about digest.Digest) {
	if repository, d, found := strings.Cut(name, "@"); found {
		return repository, "", digest.Digest(d)
	}
	repository = name
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		repository, tag = name[:colon], name[colon+1:]
	}
	if subject, ok := strings.CutPrefix(tag, "sha256-"); ok { // its referrers, or its signatures
		if d := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimSuffix(subject, ".sig")); d.Validate() == nil {
			return repository, "", d
		}
	}
	return repository, tag, ""
}

// reach adds to blobs what d leads to, as far as the cache has it.
func (s *Store) reach(d ocispec.Descriptor, blobs map[digest.Digest]int64) {
	if _, seen := blobs[d.Digest]; seen {
		return
	}
	info, err := os.Stat(s.layout.blob(d.Digest))
	if err != nil {
		return
	}
	blobs[d.Digest] = info.Size()
	if !isIndex(d.MediaType) && !isManifest(d.MediaType) {
		return
	}
	raw, err := s.layout.read(plain(d), s.limits.Manifest)
	if err != nil {
		return // spoiled: what it led to will be fetched with it
	}
	m, err := parseDocument(d.MediaType, raw)
	if err != nil {
		return
	}
	for _, child := range m.children() {
		s.reach(child, blobs)
	}
}

// children are all that a document refers to, but its subject.
func (d *document) children() []ocispec.Descriptor {
	out := slices.Concat(d.Manifests, d.Layers)
	if d.Config != nil {
		out = append(out, *d.Config)
	}
	return out
}

// blob is the file of a digest. A digest that is none has no file.
func (l *layout) blob(d digest.Digest) string {
	if d.Validate() != nil {
		return l.path("none")
	}
	return l.path(filepath.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()))
}

// used is when an image was last asked for: the time of its file.
func (l *layout) used(d digest.Digest) time.Time {
	info, err := os.Stat(l.blob(d))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime().UTC().Truncate(time.Second)
}

// touch says that an image is asked for. Where that fails it may be collected earlier than others, no more.
func (l *layout) touch(d digest.Digest) {
	now := time.Now()
	_ = os.Chtimes(l.blob(d), now, now)
}
