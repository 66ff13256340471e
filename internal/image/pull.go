// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// Credential is one login for a registry.
type Credential struct {
	Username, Password string
	IdentityToken      string // an OAuth2 refresh token, instead of a password
}

// Keyring knows the credentials that may fit a reference, best first. They are tried in order, then none.
type Keyring interface {
	Credentials(Reference) []Credential
}

// pull is the way to one repository on behalf of one keyring: the repository's mirrors in order, then its host. It
// holds the tokens that the registry gave out, and is never shared between keyrings.
type pull struct {
	endpoints []*endpoint
	identity  string // of the credentials, without being them
}

// endpoint is one host that may have the repository.
type endpoint struct {
	host       string
	onlyPulls  bool // what a tag stands for is not asked there
	allowed    error
	repository []*remote.Repository // one per credential
	first      atomic.Int32         // the credential that worked
	down       atomic.Bool
}

const (
	attempts = 3
	backoff  = 50 * time.Millisecond // and four times as long before each further attempt
)

func (s *Store) newPull(ref Reference, k Keyring) *pull {
	if k == nil {
		k = s.keyring
	}
	p := &pull{}
	id := sha256.New()
	for _, w := range s.guard.registries.order(ref.Registry) {
		at := ref
		at.Registry = w.host
		var creds []Credential
		if k != nil {
			creds = k.Credentials(at)
		}
		e := &endpoint{host: w.host, onlyPulls: w.onlyPulls, allowed: s.guard.registries.allow(w.host)}
		for _, c := range append(creds, Credential{}) {
			fmt.Fprintf(id, "%q %q %q %q\n", w.host, c.Username, c.Password, c.IdentityToken)
			e.repository = append(e.repository, s.repository(ref, w, c))
		}
		p.endpoints = append(p.endpoints, e)
	}
	p.identity = hex.EncodeToString(id.Sum(nil))
	return p
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
		Client:               &client{way: w, registry: ref.Registry, auth: a, manifest: s.limits.Manifest},
		Reference:            where,
		PlainHTTP:            s.guard.registries.hosts[w.host].plainHTTP,
		ReferrerListMaxPages: 16,
		MaxMetadataBytes:     s.limits.Manifest,
		SkipReferrersGC:      true, // deleting is not ours to do
	}
}

// resolvers is the same way with the endpoints whose word on tags counts.
func (p *pull) resolvers() (*pull, error) {
	out := &pull{identity: p.identity}
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
	var err error
	for i, e := range p.endpoints {
		mirror := i < len(p.endpoints)-1
		if mirror && e.down.Load() {
			continue
		}
		if err = e.try(ctx, mirror, op); err == nil || ctx.Err() != nil {
			return classify(e.host, err)
		}
		if errors.Is(err, ErrUnavailable) {
			e.down.Store(true)
		}
	}
	return err
}

func (e *endpoint) try(ctx context.Context, mirror bool, op func(context.Context, *remote.Repository) error) (err error) {
	if e.allowed != nil {
		return e.allowed
	}
	for i := int(e.first.Load()); i < len(e.repository); i++ {
		if err = e.attempt(ctx, mirror, e.repository[i], op); !errors.Is(err, ErrUnauthenticated) {
			e.first.Store(int32(i))
			return err
		}
	}
	return err
}

func (e *endpoint) attempt(ctx context.Context, mirror bool, r *remote.Repository, op func(context.Context, *remote.Repository) error) error {
	wait := backoff
	for n := 1; ; n++ {
		err := classify(e.host, op(ctx, r))
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
