// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// proofs remembers who may pull what the cache has: what was pulled for one pod is another's only if his own
// credentials, or none, may pull it, too (KEP-2535, which does the same for container images).
//
// There is a file for each image of a repository, named by the hash of repository@digest. Without one, nobody has
// proven anything, so that whatever gets lost is asked for again. It also lists the parts of the image that its
// repository has served: the cache keeps blobs by digest alone, and whoever names the digest of a private one in an image
// of his own must not be given it. Images that were built or imported here are for all, whole.
// Credentials are kept as hashes, keyed by a random number that never leaves this directory: a copy of a record alone
// does not help to guess a password.
type proofs struct {
	dir string
	key []byte
}

// proof is one file.
type proof struct {
	Image       string   `json:"image"`                 // repository@digest
	Local       bool     `json:"local,omitempty"`       // built or imported here
	Public      bool     `json:"public,omitempty"`      // may be pulled without credentials
	Credentials []string `json:"credentials,omitempty"` // the newest last

	Parts []digest.Digest `json:"parts,omitempty"` // that the repository has served
}

const (
	proofsDir  = "proofs"
	proofsKey  = "key"
	proofsLock = "lock"
	// public is the hash of no credentials.
	public = ""
	// maxProofs bounds a record. Whoever drops out proves himself again.
	maxProofs = 256
	// maxParts is more than an image may have: manifest, config and layers.
	maxParts = maxLayers + 8
	maxProof = 64 << 10 // bytes of a file, more than all these take
)

// openProofs opens the records beside a layout, without those of images that it no longer has.
func openProofs(l *layout) (*proofs, error) {
	p := &proofs{dir: l.path(proofsDir)}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	if err := p.locked(p.readKey); err != nil {
		return nil, err
	}
	return p, p.tidy(l)
}

// readKey reads the key, and makes one where there is none or a broken one.
func (p *proofs) readKey() (err error) {
	path := filepath.Join(p.dir, proofsKey)
	p.key, err = os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cacheError(err)
	}
	if len(p.key) == sha256.Size {
		return nil
	}
	p.key = make([]byte, sha256.Size)
	rand.Read(p.key) // never fails
	return p.replace(path, p.key)
}

// locked calls f alone among all processes.
func (p *proofs) locked(f func() error) error {
	path := filepath.Join(p.dir, proofsLock)
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	removed := errors.Is(err, fs.ErrNotExist)
	if removed {
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return cacheError(err)
		}
		lock, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	}
	if err != nil {
		return cacheError(err)
	}
	defer lock.Close()
	if err := flock(lock, syscall.LOCK_EX); err != nil {
		return cacheError(err)
	}
	if removed {
		if err := p.keepKey(); err != nil {
			return err
		}
	}
	return f()
}

// keepKey writes the key of this process where somebody removed the file. Another process that was quicker has its own: what
// one of the two proved, the other proves again.
func (p *proofs) keepKey() error {
	path := filepath.Join(p.dir, proofsKey)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return cacheError(err)
	}
	return p.replace(path, p.key)
}

// replace writes a file in one step; by who holds the lock.
func (p *proofs) replace(path string, data []byte) error {
	if err := os.WriteFile(path+temporary, data, 0o600); err != nil {
		os.Remove(path + temporary)
		return cacheError(err)
	}
	return cacheError(os.Rename(path+temporary, path))
}

// hash stands for a credential in a record.
func (p *proofs) hash(host string, c Credential) string {
	if c == (Credential{}) {
		return public
	}
	mac := hmac.New(sha256.New, p.key)
	fmt.Fprintf(mac, "%q %q %q %q", host, c.Username, c.Password, c.IdentityToken)
	return hex.EncodeToString(mac.Sum(nil))
}

func (p *proofs) path(image string) string {
	sum := sha256.Sum256([]byte(image))
	return filepath.Join(p.dir, hex.EncodeToString(sum[:])+".json")
}

// read returns the record of an image. One that is missing or broken proves nothing.
func (p *proofs) read(image string) (proof, error) {
	none := proof{Image: image}
	data, err := os.ReadFile(p.path(image))
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, cacheError(err)
	}
	var r proof
	if len(data) > maxProof || json.Unmarshal(data, &r) != nil || r.Image != image {
		return none, nil
	}
	return r, nil
}

// admits reports whether one of the hashes may pull the image, or everybody.
func (r proof) admits(hashes []string) bool {
	return r.Local || r.Public || slices.ContainsFunc(hashes, func(h string) bool { return h != public && slices.Contains(r.Credentials, h) })
}

// has reports whether a part of the image came from where the image did.
func (r proof) has(part digest.Digest) bool { return r.Local || slices.Contains(r.Parts, part) }

// add records that a credential, or none, may pull the image, and returns the record.
func (p *proofs) add(image, hash string) (proof, error) {
	return p.change(image, func(r *proof) {
		switch {
		case r.admits([]string{hash}):
		case hash == public:
			r.Public, r.Credentials = true, nil
		default:
			r.Credentials = append(r.Credentials, hash)
			r.Credentials = r.Credentials[max(0, len(r.Credentials)-maxProofs):]
		}
	})
}

// addLocal records that an image was built or imported here.
func (p *proofs) addLocal(image string) error {
	_, err := p.change(image, func(r *proof) { *r = proof{Image: image, Local: true} })
	return err
}

// addPart records that the repository has served a part of the image.
func (p *proofs) addPart(image string, part digest.Digest) error {
	_, err := p.change(image, func(r *proof) {
		if !r.has(part) && len(r.Parts) < maxParts {
			r.Parts = append(r.Parts, part)
		}
	})
	return err
}

// change changes a record, alone among all processes.
func (p *proofs) change(image string, f func(*proof)) (r proof, err error) {
	return r, p.locked(func() (err error) {
		if r, err = p.read(image); err != nil {
			return err
		}
		before, err := json.Marshal(r)
		if err != nil {
			return err
		}
		f(&r)
		after, err := json.Marshal(r)
		if err != nil || bytes.Equal(before, after) {
			return err
		}
		return p.replace(p.path(image), append(after, '\n'))
	})
}

// tidy removes the records of images that the cache no longer has, and what a crash left half-written. What was written
// just now stays: its image may be named in a moment.
func (p *proofs) tidy(l *layout) error {
	return p.locked(func() error {
		now, err := l.snapshot()
		if err != nil {
			return err
		}
		keep := map[string]bool{proofsKey: true, proofsLock: true}
		for name := range now.byName {
			if strings.Contains(name, "@") {
				keep[filepath.Base(p.path(name))] = true
			}
		}
		entries, err := os.ReadDir(p.dir)
		if err != nil {
			return cacheError(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				return cacheError(err)
			}
			if keep[e.Name()] || time.Since(info.ModTime()) < settling {
				continue
			}
			if err := os.Remove(filepath.Join(p.dir, e.Name())); err != nil {
				return cacheError(err)
			}
		}
		return nil
	})
}

// prove makes sure that whoever pulls by p may have an image of the cache: by the record, or else by asking the
// registry with his own credentials. What cannot be asked is not proven.
func (s *Store) prove(ctx context.Context, p *pull, ref Reference, d digest.Digest, policy volume.PullPolicy) (proof, error) {
	image := digestName(ref, d)
	r, err := s.proofs.read(image)
	if err != nil || r.admits(p.hashes()) {
		return r, err
	}
	if policy == volume.PullNever {
		return r, fmt.Errorf("%w: it is in the cache for other credentials, and the pull policy is Never; pull it once with these", ErrUnauthenticated)
	}
	var used string
	err = p.search(ctx, func(ctx context.Context, r *remote.Repository) error {
		used = p.hashOf(r)
		// Its bytes are hashed, which no page that answers everything with 200 can fake.
		_, _, err := fetchManifest(ctx, r, d.String())
		return err
	})
	if err != nil {
		return r, fmt.Errorf("cached for other credentials: %w", err)
	}
	return s.proofs.add(image, used)
}

// part returns bytes of the image: from the cache where the image's own repository has served them, else from there.
func (r *Root) part(ctx context.Context, d ocispec.Descriptor, most int64) ([]byte, error) {
	if r.local || r.proof.has(d.Digest) {
		return r.fetch(ctx, d, most)
	}
	if d.Size < 0 || d.Size > most {
		return nil, tooLarge(d, most)
	}
	if r.pull == nil {
		return nil, fmt.Errorf("%w: %s; pull or build it again", ErrNotCached, d.Digest)
	}
	s, image := r.store, digestName(r.Reference, r.Digest)
	var b []byte
	err := s.inTurn(ctx, r.pull.name+"@"+d.Digest.String(), func() error {
		now, err := s.proofs.read(image)
		if err != nil {
			return err
		}
		if now.has(d.Digest) {
			if b, err = s.cached(d, most); err == nil || !replaceable(err) {
				return err
			}
		}
		if b, err = r.pull.fetch(ctx, d); err != nil {
			return err
		}
		if err := s.layout.put(d, b); err != nil {
			return err
		}
		return s.proofs.addPart(image, d.Digest)
	})
	return b, err
}
