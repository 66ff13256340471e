// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// pull is the way to one repository on behalf of one keyring: the repository's mirrors in order, then its host. It
// holds the tokens that the registry gave out, and is never shared between keyrings.
type pull struct {
	name      string // of the repository
	endpoints []*endpoint
	identity  string // of the credentials, without being them
}

// endpoint is one host that may have the repository.
type endpoint struct {
	host      string
	onlyPulls bool // what a tag stands for is not asked there
	allowed   error
	access    []access     // one per credential, the last without
	first     atomic.Int32 // the one that was not refused
	down      atomic.Bool
}

// access is one host with one credential.
type access struct {
	repository *remote.Repository
	credential Credential
	hash       string // of the credential, as in records
}

const (
	attempts = 3
	backoff  = 50 * time.Millisecond // and four times as long before each further attempt
)

// newPull is the way for those who bring k: its credentials first, then those of the node, then none.
func (s *Store) newPull(ref Reference, k Keyring) *pull {
	keyrings := Keyrings{k, s.keyring}
	p := &pull{name: ref.Name()}
	id := sha256.New()
	for _, w := range s.guard.registries.order(ref.Registry) {
		at := ref
		at.Registry = w.host
		e := &endpoint{host: w.host, onlyPulls: w.onlyPulls, allowed: s.guard.registries.allow(w.host)}
		for _, c := range append(keyrings.Credentials(at), Credential{}) {
			fmt.Fprintf(id, "%q %q %q %q\n", w.host, c.Username, c.Password, c.IdentityToken)
			e.access = append(e.access, access{s.repository(ref, w, c), c, s.proofs.hash(w.host, c)})
		}
		p.endpoints = append(p.endpoints, e)
	}
	p.identity = hex.EncodeToString(id.Sum(nil))
	return p
}

// hashes are those of all credentials of p.
func (p *pull) hashes() []string {
	var all []string
	for _, e := range p.endpoints {
		for _, a := range e.access {
			all = append(all, a.hash)
		}
	}
	return all
}

// hashOf is the hash of the credential that a repository of p is asked with.
func (p *pull) hashOf(r *remote.Repository) string {
	for _, e := range p.endpoints {
		for _, a := range e.access {
			if a.repository == r {
				return a.hash
			}
		}
	}
	return public
}

func (s *Store) repository(ref Reference, w way, c Credential) *remote.Repository {
	where := registry.Reference{Registry: w.host, Repository: w.prefix + ref.Repository}
	through := &http.Client{Transport: wayTransport{guard: s.guard, way: w}, CheckRedirect: checkRedirect}
	a := &auth.Client{Client: through, Cache: auth.NewCache()}
	a.SetUserAgent(s.userAgent)
	if c != (Credential{}) {
		// StaticCredential gives it to this host alone, wherever a redirect leads.
		a.Credential = auth.StaticCredential(where.Host(), auth.Credential{
			Username: c.Username, Password: c.Password, RefreshToken: c.IdentityToken,
		})
	}
	return &remote.Repository{
		Client:               &client{way: w, registry: ref.Registry, auth: a, credential: c, manifest: s.limits.Manifest},
		Reference:            where,
		PlainHTTP:            s.guard.registries.hosts[w.host].plainHTTP,
		ReferrerListMaxPages: 16,
		MaxMetadataBytes:     s.limits.Manifest,
		SkipReferrersGC:      true, // deleting is not ours to do
	}
}

// resolvers is the same way with the endpoints whose word on tags counts.
func (p *pull) resolvers() (*pull, error) {
	out := &pull{name: p.name, identity: p.identity}
	for _, e := range p.endpoints {
		if !e.onlyPulls {
			out.endpoints = append(out.endpoints, e)
		}
	}
	if len(out.endpoints) == 0 {
		return nil, fmt.Errorf("%w: no host of this registry may say what a tag stands for; name the image by digest, or ask an admin for the capability resolve in hosts.toml", ErrHostNotAllowed)
	}
	return out, nil
}

// try runs op with each endpoint until one succeeds. The last endpoint, the host itself, has the last word: what it
// says is the error.
func (p *pull) try(ctx context.Context, op func(context.Context, *remote.Repository) error) error {
	return p.run(ctx, op, ErrUnauthenticated)
}

// search is try for an op that finds out which credential is good for a repository. Of one that a credential may not
// see, some registries say that it does not exist.
func (p *pull) search(ctx context.Context, op func(context.Context, *remote.Repository) error) error {
	return p.run(ctx, op, ErrUnauthenticated, ErrNotFound)
}

func (p *pull) run(ctx context.Context, op func(context.Context, *remote.Repository) error, refusals ...error) error {
	var err error
	for i, e := range p.endpoints {
		mirror := i < len(p.endpoints)-1
		if mirror && e.down.Load() {
			continue
		}
		if err = e.run(ctx, mirror, op, refusals); err == nil || ctx.Err() != nil {
			return classify(e.host, err)
		}
		if errors.Is(err, ErrUnavailable) {
			e.down.Store(true)
		}
	}
	return err
}

// run runs op with each credential until one is not refused. Where all are, the first one's answer is the error.
func (e *endpoint) run(ctx context.Context, mirror bool, op func(context.Context, *remote.Repository) error, refusals []error) error {
	if e.allowed != nil {
		return e.allowed
	}
	var refused error
	for i := int(e.first.Load()); i < len(e.access); i++ {
		err := e.attempt(ctx, mirror, e.access[i], op)
		if !slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) }) {
			e.first.Store(int32(i))
			return err
		}
		refused = cmp.Or(refused, err)
	}
	return refused
}

func (e *endpoint) attempt(ctx context.Context, mirror bool, a access, op func(context.Context, *remote.Repository) error) error {
	wait := backoff
	for n := 1; ; n++ {
		err := op(ctx, a.repository)
		if a.credential.repeatedBy(err) {
			err = errRepeated(e.host)
		}
		err = classify(e.host, err)
		if mirror || n == attempts || !errors.Is(err, ErrUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		wait *= 4
	}
}

// errRepeated takes the place of an error that has credentials in it, from a registry that repeats what it was sent.
func errRepeated(host string) error {
	return fmt.Errorf("%w: registry %s: its answer repeats the credentials it was sent; check the registry", ErrUnauthenticated, host)
}
