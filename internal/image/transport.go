// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"cmp"
	"context"
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
	custom     map[string]*http.Transport // by host, for those that are reached in a way of their own
	proxies    sync.Map                   // addresses of HTTP proxies: the admin's choice, not the image author's
}

func newGuard(r Registries) *guard {
	g := &guard{registries: r, custom: map[string]*http.Transport{}}
	g.system = g.transport(hostConfig{})
	for host, c := range r.hosts {
		if c.tls != nil || c.dialTimeout > 0 {
			g.custom[host] = g.transport(c)
		}
	}
	return g
}

func (g *guard) transport(c hostConfig) *http.Transport {
	timeout := cmp.Or(c.dialTimeout, 5*time.Second)
	return &http.Transport{
		Proxy: g.proxy,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return g.dial(ctx, network, addr, timeout)
		},
		TLSClientConfig:        c.tls,
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

// maxRedirects is how often a registry may send on: to its blob store, and from there to the nearest copy.
const maxRedirects = 5

// checkRedirect refuses what no well-behaved registry does. Whether the host may be contacted is seen by RoundTrip, and
// oras v2.7.0 takes credentials out of what goes to another host.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: registry %s redirects more than %d times; check the registry", ErrUnavailable, via[0].URL.Host, maxRedirects)
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: registry %s redirects from HTTPS to plain HTTP; check the registry", ErrHostNotAllowed, via[0].URL.Host)
	}
	return nil
}

// wayTransport adds the headers that an admin wrote down for a host, and to nothing that goes elsewhere.
type wayTransport struct {
	*guard
	way way
}

func (t wayTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if host, err := t.host(req.URL); err == nil && host == t.way.host && len(t.way.header) > 0 {
		req = req.Clone(req.Context())
		for name, values := range t.way.header {
			if req.Header.Get(name) == "" {
				req.Header[name] = values
			}
		}
	}
	return t.guard.RoundTrip(req)
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
func (g *guard) dial(ctx context.Context, network, addr string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
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
	way        way
	registry   string // whose images are wanted
	auth       *auth.Client
	credential Credential // that auth may send
	manifest   int64      // limit
}

func (c *client) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.auth.Do(c.at(req))
	if err != nil {
		var token *errcode.ErrorResponse
		var network *url.Error
		switch {
		case c.credential.repeatedBy(innermost(err)):
			return nil, errRepeated(c.way.host)
		case errors.As(err, &token) && token.StatusCode < 500 && token.StatusCode != http.StatusTooManyRequests:
			return nil, answered(c.way.host, http.StatusUnauthorized) // by the token server, also where it says 404
		case !errors.As(err, &token) && !errors.As(err, &network) && !errors.Is(err, auth.ErrBasicCredentialNotFound):
			return nil, fmt.Errorf("%w: registry %s: answer of its token server cannot be used: %s; check the registry", ErrUnauthenticated, c.way.host, quote(innermost(err).Error()))
		}
		return nil, classify(c.way.host, err)
	}
	if resp.StatusCode/100 != 2 && resp.StatusCode != http.StatusNotFound {
		resp.Body.Close()
		return nil, answered(c.way.host, resp.StatusCode)
	}
	if i := strings.LastIndex(req.URL.Path, "/manifests/"); i >= 0 && req.Method == http.MethodGet && resp.StatusCode == http.StatusOK {
		return c.readManifest(resp, req.URL.Path[i+len("/manifests/"):])
	}
	return resp, nil
}

// at returns the request as the host wants it. The address of a further page comes from the host itself, so it begins
// with the host's own path already.
func (c *client) at(req *http.Request) *http.Request {
	rest, ours := strings.CutPrefix(req.URL.Path, "/v2/")
	ours = ours && c.way.path != ""
	if !ours && !c.way.namespace {
		return req
	}
	req = req.Clone(req.Context())
	if ours {
		req.URL.Path, req.URL.RawPath = c.way.path+rest, ""
	}
	if c.way.namespace {
		query := req.URL.Query()
		query.Set("ns", c.registry)
		req.URL.RawQuery = query.Encode()
	}
	return req
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
		return nil, classify(c.way.host, err)
	}
	if int64(len(body)) > c.manifest {
		return nil, fmt.Errorf("%w: manifest has more than %d bytes", ErrTooLarge, c.manifest)
	}
	got := digest.FromBytes(body)
	for _, claim := range []string{asked, resp.Header.Get(digestHeader)} {
		want, err := digest.Parse(claim)
		if err == nil && want.Algorithm().FromBytes(body) != want {
			return nil, fmt.Errorf("%w: registry %s sent a manifest that is not %s; push the image again", ErrDigestMismatch, c.way.host, want)
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
