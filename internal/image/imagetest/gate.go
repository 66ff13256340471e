// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"net/http"
	"sync"
	"testing"
)

// Gate stands before a registry: it notes each request and lets one hook decide what becomes of it. The zero Gate lets
// everything pass.
type Gate struct {
	mu       sync.Mutex
	hook     Hook
	requests []string
}

// Hook sees a request before the registry, which is next.
type Hook func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Before returns registry with the gate before it.
func (g *Gate) Before(registry http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.requests = append(g.requests, r.Method+" "+r.URL.Path)
		hook := g.hook
		g.mu.Unlock()
		if hook == nil {
			registry.ServeHTTP(w, r)
			return
		}
		hook(w, r, registry)
	})
}

// Intercept puts hook before the registry; nil removes it.
func (g *Gate) Intercept(hook Hook) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hook = hook
}

// InterceptFor is Intercept until the test ends.
func (g *Gate) InterceptFor(t testing.TB, hook Hook) {
	g.Intercept(hook)
	t.Cleanup(func() { g.Intercept(nil) })
}

// Requests returns the requests since the last call, as "GET /v2/acme/count/manifests/v1".
func (g *Gate) Requests() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := g.requests
	g.requests = nil
	return out
}
