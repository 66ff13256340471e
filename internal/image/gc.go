// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// DefaultCacheSize is what a cache may take where nobody says otherwise. Images of objects have some kilobytes each.
const DefaultCacheSize = 2 << 30

const (
	// settling is how long an image stays after it was asked for: a publish that has resolved it may still need it,
	// and has no record yet. It is longer than a call of kubelet.
	settling = 3 * time.Minute
	// idle is how long Tend sleeps where nothing happens.
	idle = time.Hour
	// gcPatience is how long collecting waits for work in flight to end.
	gcPatience = 5 * time.Second
)

// PruneOptions say what of the cache may go.
type PruneOptions struct {
	// Size is what may stay, in bytes. Images go in the order in which they were last used.
	Size int64
	// Keep are images that stay: those of published volumes.
	Keep []digest.Digest
	// All lets images go that no registry may have: built here, or imported.
	All bool
	// Settling is how long an image stays after it was asked for; negative: not at all. Default 3 minutes.
	Settling time.Duration
}

// Pruned says what Prune did.
type Pruned struct {
	Images []Cached `json:"images"` // that are gone; without sizes and signatures
	Freed  int64    `json:"freed"`  // bytes, with what belonged to no image
	Size   int64    `json:"size"`   // bytes that the cache takes now
}

// errInUse means that the cache could not be had alone.
var errInUse = errors.New("image cache: in use by pulls that do not end; try again")

// Prune brings the cache down to a size, as far as it may. What belongs to no image goes in any case. Nothing is read or
// written by others meanwhile; who is killed in the middle leaves blobs that belong to no image, and the next one
// removes them.
func (s *Store) Prune(ctx context.Context, opts PruneOptions) (Pruned, error) {
	orDefault(&opts.Settling, settling)
	release, err := s.layout.alone(ctx)
	if err != nil {
		return Pruned{}, err
	}
	defer release()
	now, err := s.layout.snapshot()
	if err != nil {
		return Pruned{}, err
	}
	entries := s.entries(now.index)
	blobs := make([]map[digest.Digest]int64, len(entries)) // of each
	uses := map[digest.Digest]int{}
	out := Pruned{Images: []Cached{}}
	for i, e := range entries {
		blobs[i] = map[digest.Digest]int64{}
		for _, d := range e.documents {
			s.reach(d, blobs[i])
		}
		for d, size := range blobs[i] {
			if uses[d]++; uses[d] == 1 {
				out.Size += size
			}
		}
	}
	order := make([]int, len(entries))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return entries[a].Used.Compare(entries[b].Used) })
	type named struct {
		name   string
		digest digest.Digest
	}
	gone := map[named]bool{}
	for _, i := range order {
		if out.Size <= opts.Size {
			break
		}
		if e := entries[i]; opts.spares(e) {
			continue
		}
		for n, name := range entries[i].names {
			gone[named{name, entries[i].documents[n].Digest}] = true
		}
		for d, size := range blobs[i] {
			if uses[d]--; uses[d] == 0 {
				delete(uses, d)
				out.Size -= size
			}
		}
		out.Images = append(out.Images, entries[i].Cached)
	}
	// The index first: it may name less than there is, never more.
	err = s.layout.update(func(index *ocispec.Index) bool {
		before := len(index.Manifests)
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return gone[named{d.Annotations[ocispec.AnnotationRefName], d.Digest}]
		})
		return len(index.Manifests) != before
	})
	if err != nil {
		return out, err
	}
	if err := s.proofs.tidy(s.layout); err != nil {
		return out, err
	}
	out.Freed, err = s.layout.sweepBlobs(uses)
	return out, err
}

// spares reports whether an image stays, whatever the size.
func (o PruneOptions) spares(e *entry) bool {
	return slices.Contains(o.Keep, e.Digest) || !o.All && e.Origin != OriginPulled || time.Since(e.Used) < o.Settling
}

// alone waits until nobody holds the cache.
func (l *layout) alone(ctx context.Context) (release func(), err error) {
	f, err := os.OpenFile(l.path(gcLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, cacheError(err)
	}
	for end := time.Now().Add(gcPatience); ; {
		err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, cacheError(err)
		}
		if time.Now().After(end) {
			f.Close()
			return nil, errInUse
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// sweepBlobs removes the blobs that are not in keep, and what was being written. The caller holds the cache alone.
func (l *layout) sweepBlobs(keep map[digest.Digest]int) (freed int64, err error) {
	files, err := filepath.Glob(l.path(ocispec.ImageBlobsDir + "/*/*"))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(filepath.Dir(file))), filepath.Base(file))
		if _, kept := keep[d]; kept {
			continue
		}
		info, err := os.Lstat(file)
		if err != nil {
			return freed, cacheError(err)
		}
		if err := os.RemoveAll(file); err != nil {
			return freed, cacheError(err)
		}
		freed += info.Size()
	}
	return freed, cacheError(os.RemoveAll(l.path(ingestDir)))
}

// size is what the blobs take.
func (l *layout) size() (int64, error) {
	files, err := filepath.Glob(l.path(ocispec.ImageBlobsDir + "/*/*"))
	if err != nil {
		return 0, err
	}
	var total int64
	for _, file := range files {
		if info, err := os.Lstat(file); err == nil { // else it went meanwhile
			total += info.Size()
		}
	}
	return total, nil
}

// wake tells Tend that the cache has grown.
func (s *Store) wake() {
	if !s.layout.wrote.Swap(false) {
		return
	}
	select {
	case s.grown <- struct{}{}:
	default:
	}
}

// Tend keeps the cache below a size until ctx ends: after whatever was fetched, and in case others fetch, from time to
// time. Images that keep returns stay. Each time that it removed something, or could not, it says so to report.
func (s *Store) Tend(ctx context.Context, size int64, keep func() ([]digest.Digest, error), report func(Pruned, error)) {
	for wait := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-s.grown:
		case <-time.After(wait):
		}
		pruned, err := s.tend(ctx, size, keep)
		if ctx.Err() != nil {
			return
		}
		if err != nil || len(pruned.Images) > 0 || pruned.Freed > 0 {
			report(pruned, err)
		}
		wait = idle
		if err != nil || pruned.Size > size {
			wait = settling // some may go by then
		}
	}
}

func (s *Store) tend(ctx context.Context, size int64, keep func() ([]digest.Digest, error)) (Pruned, error) {
	if total, err := s.layout.size(); err != nil || total <= size {
		return Pruned{}, err
	}
	digests, err := keep()
	if err != nil {
		return Pruned{}, fmt.Errorf("image cache: not collected, as it is not known what volumes need: %w", err)
	}
	return s.Prune(ctx, PruneOptions{Size: size, Keep: digests})
}
