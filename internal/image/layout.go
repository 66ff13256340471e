// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/errdef"
)

// layout is an OCI image layout on disk that daemon and command line use at the same time. oras keeps the blobs;
// index.json is ours, because oras writes it in place and knows one process only.
//
// Entries of index.json are named as a registry would be asked:
//
//	ghcr.io/acme/x:v1                    the tag, as last seen
//	ghcr.io/acme/x@sha256:<hex>          this repository has served this digest
//	ghcr.io/acme/x:sha256-<hex>.sig      signatures of that digest, as cosign v2 tags them
//	ghcr.io/acme/x:sha256-<hex>          index of its referrers, by the tag schema of OCI 1.1; here also, where empty:
//	                                     the registry was asked and had none
//
// The repository is part of every name: a policy that trusts a repository without signatures must not be given what
// another one served.
type layout struct {
	dir   string
	blobs *oci.Storage
	lock  *os.File // shared while in use

	wrote atomic.Bool // a blob since this was last looked at

	mu   sync.Mutex
	last *snapshot
}

// annotationLocal marks an image that was built here and that no registry has been given yet.
const annotationLocal = "io.bpfvol.local"

// annotationImported marks an image that came by an archive: there may be no registry to fetch it from again.
const annotationImported = "io.bpfvol.imported"

const (
	indexLock = "index.lock"
	useLock   = "use.lock"
	gcLock    = "gc.lock" // shared by whoever writes blobs that index.json does not name yet
	ingestDir = "ingest"  // where oras writes blobs before it renames them
	temporary = ".tmp"
)

// errAbsent means that a blob is not there.
var errAbsent = errors.New("absent")

func openLayout(dir string) (_ *layout, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l := &layout{dir: dir}
	if l.lock, err = os.OpenFile(l.path(useLock), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	// Alone, whatever stands half-written was left by someone who was killed.
	if flock(l.lock, syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		if err := l.sweep(); err != nil {
			return nil, err
		}
	}
	if err := flock(l.lock, syscall.LOCK_SH); err != nil {
		return nil, err
	}
	if l.blobs, err = oci.NewStorage(dir); err != nil {
		return nil, err
	}
	if err := l.writeVersion(); err != nil {
		return nil, err
	}
	return l, l.update(func(*ocispec.Index) bool { return false })
}

// writeVersion writes the file that says of which version the layout is, where there is none.
func (l *layout) writeVersion() error {
	if _, err := os.Stat(l.path(ocispec.ImageLayoutFile)); err == nil {
		return nil
	}
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return l.replace(ocispec.ImageLayoutFile, version)
}

// remake makes the directory anew and uses that: the lock of the old one excludes nobody.
func (l *layout) remake() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(l.path(useLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := flock(lock, syscall.LOCK_SH); err != nil {
		lock.Close()
		return err
	}
	l.lock.Close()
	l.lock = lock
	return l.writeVersion()
}

// sweep removes what was being written.
func (l *layout) sweep() error {
	if err := os.RemoveAll(l.path(ingestDir)); err != nil {
		return err
	}
	left, err := filepath.Glob(l.path("*" + temporary + "*"))
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

func (l *layout) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != nil {
		l.last.file.Close()
		l.last = nil
	}
	return l.lock.Close()
}

func (l *layout) path(name string) string { return filepath.Join(l.dir, name) }

// open opens a file that is a lock. It makes the layout again that somebody removed: who locks is about to write.
func (l *layout) open(name string) (*os.File, error) {
	f, err := os.OpenFile(l.path(name), os.O_CREATE|os.O_RDWR, 0o600)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, cacheError(err)
	}
	if err := l.remake(); err != nil {
		return nil, cacheError(err)
	}
	f, err = os.OpenFile(l.path(name), os.O_CREATE|os.O_RDWR, 0o600)
	return f, cacheError(err)
}

// hold keeps garbage collection away until it is released.
func (l *layout) hold() (release func(), err error) {
	f, err := l.open(gcLock)
	if err != nil {
		return nil, err
	}
	if err := flock(f, syscall.LOCK_SH); err != nil {
		f.Close()
		return nil, cacheError(err)
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// replace writes a file in one step. It is not synced: after a power failure a cache may have to be filled again.
func (l *layout) replace(name string, data []byte) error {
	f, err := os.CreateTemp(l.dir, name+temporary+"*")
	if err != nil {
		return cacheError(err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return cacheError(err)
	}
	if err := os.Rename(f.Name(), l.path(name)); err != nil {
		os.Remove(f.Name())
		return cacheError(err)
	}
	return nil
}

// cacheError keeps the cause of a failed write and drops the name of the temporary file from its text.
func cacheError(err error) error {
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("image cache: %w", errno)
	}
	return fmt.Errorf("image cache: %w", err)
}

// read returns a blob after hashing it. Where it is not what its name says, the error wraps ErrDigestMismatch.
func (l *layout) read(d ocispec.Descriptor, most int64) ([]byte, error) {
	if d.Size < 0 || d.Size > most {
		return nil, tooLarge(d, most)
	}
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest %s", ErrUnsupported, quote(d.Digest.String()))
	}
	rc, err := l.blobs.Fetch(context.Background(), d)
	if errors.Is(err, errdef.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return nil, errAbsent
	}
	if err != nil {
		return nil, cacheError(err)
	}
	defer rc.Close()
	b := bytes.NewBuffer(make([]byte, 0, d.Size+bytes.MinRead))
	if _, err := b.ReadFrom(io.LimitReader(rc, most+1)); err != nil {
		return nil, cacheError(err)
	}
	if d.Digest.Algorithm().FromBytes(b.Bytes()) != d.Digest {
		return nil, fmt.Errorf("%w: %s in the cache", ErrDigestMismatch, d.Digest)
	}
	if int64(b.Len()) != d.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes, its descriptor says %d", ErrDigestMismatch, d.Digest, b.Len(), d.Size)
	}
	return b.Bytes(), nil
}

func tooLarge(d ocispec.Descriptor, most int64) error {
	return fmt.Errorf("%w: %s claims %d bytes, allowed are %d", ErrTooLarge, quote(d.MediaType), d.Size, most)
}

// put stores a blob, in place of one that was spoiled. Its bytes were hashed by the caller, and oras hashes them again.
func (l *layout) put(d ocispec.Descriptor, b []byte) error {
	l.wrote.Store(true)
	err := l.push(d, b)
	if !errors.Is(err, errdef.ErrAlreadyExists) {
		return cacheError(err)
	}
	if _, err := l.read(d, d.Size); !errors.Is(err, ErrDigestMismatch) {
		return err
	}
	if err := l.blobs.Delete(context.Background(), d); err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return cacheError(err)
	}
	err = l.push(d, b)
	if errors.Is(err, errdef.ErrAlreadyExists) {
		return nil // another process was quicker
	}
	return cacheError(err)
}

func (l *layout) push(d ocispec.Descriptor, b []byte) error {
	err := l.blobs.Push(context.Background(), d, bytes.NewReader(b))
	if err == nil || errors.Is(err, errdef.ErrAlreadyExists) {
		return err
	}
	// Where the disk is full, oras v2.7.0 leaves what it wrote: ingest forgets the name before it removes the file.
	left, globErr := filepath.Glob(filepath.Join(l.path(ingestDir), d.Digest.Encoded()+"_*"))
	for _, name := range left {
		os.Remove(name)
	}
	return errors.Join(err, globErr)
}

// putJSON stores v as a blob and describes it.
func (l *layout) putJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := describe(mediaType, b)
	return d, l.put(d, b)
}

// snapshot is index.json as it was read. It is shared, so nobody changes it.
type snapshot struct {
	file   *os.File // kept open, so that no later index.json gets the same inode
	info   os.FileInfo
	index  ocispec.Index
	byName map[string]ocispec.Descriptor
}

// snapshot reads index.json where it is not the file that was read last.
func (l *layout) snapshot() (*snapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	path := l.path(ocispec.ImageIndexFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &snapshot{index: referrersIndex(nil)}, nil
	}
	if err != nil {
		return nil, cacheError(err)
	}
	if last := l.last; last != nil && os.SameFile(info, last.info) && info.ModTime().Equal(last.info.ModTime()) && info.Size() == last.info.Size() {
		return last, nil
	}
	s, err := readSnapshot(path)
	if err != nil {
		return nil, err
	}
	if l.last != nil {
		l.last.file.Close()
	}
	l.last = s
	return s, nil
}

func readSnapshot(path string) (_ *snapshot, err error) {
	s := &snapshot{byName: map[string]ocispec.Descriptor{}}
	if s.file, err = os.Open(path); err != nil {
		return nil, cacheError(err)
	}
	defer func() {
		if err != nil {
			s.file.Close()
		}
	}()
	if s.info, err = s.file.Stat(); err != nil {
		return nil, cacheError(err)
	}
	data, err := io.ReadAll(s.file)
	if err != nil {
		return nil, cacheError(err)
	}
	if err := json.Unmarshal(data, &s.index); err != nil {
		return nil, fmt.Errorf("image cache: %s: %w; move the file away", path, err)
	}
	for _, d := range s.index.Manifests {
		if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
			s.byName[name] = d
		}
	}
	return s, nil
}

// find returns what name stands for.
func (l *layout) find(name string) (ocispec.Descriptor, bool, error) {
	s, err := l.snapshot()
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	d, found := s.byName[name]
	return d, found, nil
}

func named(index *ocispec.Index, name string) int {
	return slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] == name })
}

// set makes name stand for d and reports whether that is news.
func set(index *ocispec.Index, name string, d ocispec.Descriptor, local bool) bool {
	d = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Annotations: map[string]string{ocispec.AnnotationRefName: name}}
	if local {
		d.Annotations[annotationLocal] = "true"
	}
	i := named(index, name)
	if i < 0 {
		index.Manifests = append(index.Manifests, d)
		return true
	}
	old := index.Manifests[i]
	index.Manifests[i] = d
	return old.Digest != d.Digest || old.Size != d.Size || old.MediaType != d.MediaType || isLocal(old) != local
}

// unset forgets name and reports whether that is news.
func unset(index *ocispec.Index, name string) bool {
	i := named(index, name)
	if i < 0 {
		return false
	}
	index.Manifests = slices.Delete(index.Manifests, i, i+1)
	return true
}

// mark annotates what name stands for.
func mark(index *ocispec.Index, name, annotation string) {
	if i := named(index, name); i >= 0 {
		annotations := maps.Clone(index.Manifests[i].Annotations)
		annotations[annotation] = "true"
		index.Manifests[i].Annotations = annotations
	}
}

func isLocal(d ocispec.Descriptor) bool    { return d.Annotations[annotationLocal] == "true" }
func isImported(d ocispec.Descriptor) bool { return d.Annotations[annotationImported] == "true" }

// update changes index.json, alone among all processes. It is written where change says so, or where there is none.
// Annotations are shared with readers: change replaces them.
func (l *layout) update(change func(*ocispec.Index) bool) error {
	f, err := l.open(indexLock)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := flock(f, syscall.LOCK_EX); err != nil {
		return cacheError(err)
	}
	s, err := l.snapshot()
	if err != nil {
		return err
	}
	index := s.index
	index.Manifests = slices.Clone(index.Manifests)
	if !change(&index) && s.file != nil {
		return nil
	}
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return l.replace(ocispec.ImageIndexFile, data)
}
