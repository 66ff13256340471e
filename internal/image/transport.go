// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// guard is the one way out to the network. It sees every request: the registry's own, those of token servers and
// those that a redirect leads to.
type guard struct {
	registries Registries
	system     *http.Transport
	custom     map[string]*http.Transport // by host, for hosts with a caFile
	proxies    sync.Map                   // addresses of HTTP proxies: the admin's choice, not the image author's
}

func newGuard(r Registries) *guard {
	g := &guard{registries: r, custom: map[string]*http.Transport{}}
	g.system = g.transport(nil)
	for host, c := range r.hosts {
		if c.roots != nil {
			g.custom[host] = g.transport(&tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS12})
		}
	}
	return g
}

func (g *guard) transport(config *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:                  g.proxy,
		DialContext:            g.dial,
		TLSClientConfig:        config,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  15 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
	}
}

func (g *guard) close() {
	g.system.CloseIdleConnections()
	for _, t := range g.custom {
		t.CloseIdleConnections()
	}
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	host, err := g.host(req.URL)
	if err != nil {
		return nil, err
	}
	if err := g.registries.allow(host); err != nil {
		return nil, err
	}
	if req.URL.Scheme != "https" && !g.registries.hosts[host].plainHTTP {
		return nil, fmt.Errorf("%w: registry %s would be asked by plain HTTP; set plainHTTP in --registries", ErrHostNotAllowed, host)
	}
	if t, found := g.custom[host]; found {
		return t.RoundTrip(req)
	}
	return g.system.RoundTrip(req)
}

// host returns the name under which a URL's host is listed, if it is.
func (g *guard) host(u *url.URL) (string, error) {
	host, err := ParseHost(u.Host)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrHostNotAllowed, err)
	}
	if _, listed := g.registries.hosts[host]; !listed {
		port := map[string]string{"https": ":443", "http": ":80"}[u.Scheme]
		if short, found := strings.CutSuffix(host, port); found && port != "" {
			return ParseHost(short)
		}
	}
	return host, nil
}

func (g *guard) proxy(req *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(req)
	if u != nil {
		g.proxies.Store(u.Hostname(), true)
	}
	return u, err
}

// dial refuses addresses that an unlisted name must not lead to. It looks at the address that is really connected to,
// so a name server that changes its mind gains nothing.
func (g *guard) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	if !g.trusts(addr) {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			if ap, err := netip.ParseAddrPort(address); err != nil || forbidden(ap.Addr()) {
				return fmt.Errorf("%w: registry %s leads to this node or its link; ask an admin to list it in --registries", ErrHostNotAllowed, addr)
			}
			return nil
		}
	}
	return d.DialContext(ctx, network, addr)
}

func (g *guard) trusts(addr string) bool {
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if _, isProxy := g.proxies.Load(name); isProxy {
		return true
	}
	scheme := map[string]string{"443": "https", "80": "http"}[port]
	host, err := g.host(&url.URL{Scheme: scheme, Host: addr})
	if err != nil {
		return false
	}
	_, listed := g.registries.hosts[host]
	return listed
}

// client is what oras sends requests with. It turns every answer that is no success into an error of this package,
// but for 404, which oras handles itself, and it reads manifests to their end: limited, hashed, and with the headers
// that oras looks at set from the bytes.
type client struct {
	host       string
	auth       *auth.Client
	credential Credential // that auth may send
	manifest   int64      // limit
}

func (c *client) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.auth.Do(req)
	if err != nil {
		var token *errcode.ErrorResponse
		var network *url.Error
		switch {
		case c.credential.repeatedBy(innermost(err)):
			return nil, errRepeated(c.host)
		case errors.As(err, &token) && token.StatusCode < 500 && token.StatusCode != http.StatusTooManyRequests:
			return nil, answered(c.host, http.StatusUnauthorized) // by the token server, also where it says 404
		case !errors.As(err, &token) && !errors.As(err, &network) && !errors.Is(err, auth.ErrBasicCredentialNotFound):
			return nil, fmt.Errorf("%w: registry %s: answer of its token server cannot be used: %s; check the registry", ErrUnauthenticated, c.host, quote(innermost(err).Error()))
		}
		return nil, classify(c.host, err)
	}
	if resp.StatusCode/100 != 2 && resp.StatusCode != http.StatusNotFound {
		resp.Body.Close()
		return nil, answered(c.host, resp.StatusCode)
	}
	if i := strings.LastIndex(req.URL.Path, "/manifests/"); i >= 0 && req.Method == http.MethodGet && resp.StatusCode == http.StatusOK {
		return c.readManifest(resp, req.URL.Path[i+len("/manifests/"):])
	}
	return resp, nil
}

// innermost is the cause without the addresses that oras puts before it.
func innermost(err error) error {
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return err
}

const digestHeader = "Docker-Content-Digest"

func (c *client) readManifest(resp *http.Response, asked string) (*http.Response, error) {
	defer resp.Body.Close()
	if resp.ContentLength > c.manifest {
		return nil, fmt.Errorf("%w: manifest has %d bytes, allowed are %d", ErrTooLarge, resp.ContentLength, c.manifest)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, c.manifest+1))
	if err != nil {
		return nil, classify(c.host, err)
	}
	if int64(len(body)) > c.manifest {
		return nil, fmt.Errorf("%w: manifest has more than %d bytes", ErrTooLarge, c.manifest)
	}
	got := digest.FromBytes(body)
	for _, claim := range []string{asked, resp.Header.Get(digestHeader)} {
		want, err := digest.Parse(claim)
		if err == nil && want.Algorithm().FromBytes(body) != want {
			return nil, fmt.Errorf("%w: registry %s sent a manifest that is not %s; push the image again", ErrDigestMismatch, c.host, want)
		}
		if err == nil && claim == asked {
			got = want
		}
	}
	resp.Header.Set(digestHeader, got.String())
	resp.ContentLength = int64(len(body))
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}
