// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/internal/panics"
)

// Options say where a Store keeps images and whom it may ask. The zero value of each field but Dir has a default.
type Options struct {
	Dir        string // the OCI layout
	Registries Registries
	Keyring    Keyring // of the node: asked after the one of a call
	Arch       string  // GOARCH of the objects wanted
	Limits     Limits
	UserAgent  string          // "bpfvol/v0.1.0"
	Context    context.Context // the daemon's: pulls run on it, whoever waits for them
}

// Store resolves references and keeps what it fetched. It may be used from many goroutines, and its directory by
// several processes.
type Store struct {
	layout    *layout
	proofs    *proofs
	guard     *guard
	keyring   Keyring
	arch      string
	limits    Limits
	userAgent string

	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex
	grown  chan struct{}    // the cache has: see Tend
	calls  map[string]*call // in flight, by key
	turns  map[string]chan struct{}
	wg     sync.WaitGroup
	closed bool
}

// call is work that any number of callers wait for.
type call struct {
	done  chan struct{}
	value any
	err   error
}

// Open opens the layout at opts.Dir, which it makes if need be. The caller must Close the result.
func Open(opts Options) (_ *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("image cache %s: %w", opts.Dir, err)
		}
	}()
	l, err := openLayout(opts.Dir)
	if err != nil {
		return nil, err
	}
	p, err := openProofs(l)
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	s := &Store{
		layout:    l,
		proofs:    p,
		guard:     newGuard(opts.Registries),
		keyring:   opts.Keyring,
		arch:      hostArch(opts.Arch),
		limits:    opts.Limits.withDefaults(),
		userAgent: opts.UserAgent,
		grown:     make(chan struct{}, 1),
		calls:     map[string]*call{},
		turns:     map[string]chan struct{}{},
	}
	orDefault(&s.userAgent, "bpfvol")
	parent := opts.Context
	if parent == nil {
		parent = context.Background()
	}
	s.ctx, s.cancel = context.WithCancel(parent)
	return s, nil
}

// Close ends the pulls in flight and waits for them.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.guard.close()
	return s.layout.close()
}

var errClosed = errors.New("image cache is closed")

// once runs fn on the store's context, for all callers with the same key together. Each waits on his own context.
func once[T any](ctx context.Context, s *Store, fn func(context.Context) (T, error), key ...string) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, waited(err)
	}
	name := strings.Join(key, "\n")
	s.mu.Lock()
	c, running := s.calls[name]
	if !running {
		if s.closed {
			s.mu.Unlock()
			return zero, errClosed
		}
		c = &call{done: make(chan struct{})}
		s.calls[name] = c
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			ctx, cancel := context.WithTimeout(s.ctx, s.limits.Timeout)
			defer cancel()
			c.err = panics.Catch(func() (err error) {
				c.value, err = held(s, func() (any, error) { return fn(ctx) })
				return err
			})
			s.mu.Lock()
			delete(s.calls, name)
			s.mu.Unlock()
			close(c.done)
		}()
	}
	s.mu.Unlock()
	select {
	case <-c.done:
		if c.err != nil {
			return zero, c.err
		}
		return c.value.(T), nil
	case <-ctx.Done():
		return zero, waited(ctx.Err())
	}
}

// inTurn runs fn when nobody else runs one with the same key, or gives up with ctx.
func (s *Store) inTurn(ctx context.Context, key string, fn func() error) error {
	mine := make(chan struct{})
	for {
		s.mu.Lock()
		other, taken := s.turns[key]
		if !taken {
			s.turns[key] = mine
		}
		s.mu.Unlock()
		if !taken {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return waited(ctx.Err())
		}
	}
	defer func() {
		s.mu.Lock()
		delete(s.turns, key)
		s.mu.Unlock()
		close(mine)
	}()
	return fn()
}

// held runs fn while nothing is collected as garbage.
func held[T any](s *Store, fn func() (T, error)) (T, error) {
	release, err := s.layout.hold()
	if err != nil {
		var zero T
		return zero, err
	}
	defer release()
	defer s.wake()
	return fn()
}

// waited is the error of a caller who could not wait any longer. The work goes on without him.
func waited(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w; try again", ErrPulling)
	}
	return err
}

func describe(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}
