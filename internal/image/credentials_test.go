// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// thief is a server that wants what it should not get, and keeps it.
type thief struct {
	host string
	mu   sync.Mutex
	got  []string // requests in full
}

// startThief listens at an address of loopback.
func startThief(t *testing.T, address string) *thief {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	th := &thief{host: l.Addr().String()}
	server := httptest.NewUnstartedServer(th)
	server.Listener.Close()
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	return th
}

func (th *thief) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.got = append(th.got, fmt.Sprint(r.Method, r.URL, r.Header, r.PostFormValue("refresh_token")))
	fmt.Fprint(w, `{"token":"given"}`)
}

// requests are those that came.
func (th *thief) requests() string {
	th.mu.Lock()
	defer th.mu.Unlock()
	return strings.Join(th.got, "\n")
}

// A registry says where tokens are given out. Addresses of the node and its link, which are not the registry's own, get
// not even a request; a token server that sends on takes nothing along.
func TestTokenServersThatGetNoCredentials(t *testing.T) {
	// On another address of loopback, so that it is another host.
	th := startThief(t, "127.0.0.2:0")
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	sendsOn := httptest.NewServer(http.RedirectHandler("http://"+th.host+"/token", http.StatusTemporaryRedirect))
	t.Cleanup(sendsOn.Close)
	onward := strings.TrimPrefix(sendsOn.URL, "http://")
	for name, c := range map[string]image.Credential{
		"Password": {Username: "alice", Password: "hunter2-of-alice"}, "IdentityToken": {Username: "alice", IdentityToken: "hunter2-of-alice"},
	} {
		for realm, says := range map[string]string{
			"http://" + th.host + "/token":    "token server",
			"http://169.254.169.254/token":    "169.254.169.254",
			"http://[fe80::1]/token":          "fe80::1",
			"http://0.0.0.0:5000/token":       "0.0.0.0",
			"ftp://registry.example/token":    "unsupported scheme",
			"http://" + onward + "/token":     "connection failed",
			"http://registry.invalid/token":   "plain HTTP",
			"https://10.255.255.1/token":      "is an IP address",
			"http://alice:x@" + th.host + "/": "token server",
		} {
			t.Run(name+"/"+realm, func(t *testing.T) {
				reg.Intercept(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
					w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="test"`)
					w.WriteHeader(http.StatusUnauthorized)
				})
				// The thief is listed: that it may be asked for images does not make it a token server.
				store := imagetest.Store(t, reg.Host, th.host, onward)
				_, err := resolve(t, store, ref, image.PullOptions{Keyring: keyring{reg.Host: {c}}})
				if err == nil || !strings.Contains(err.Error(), says) {
					t.Errorf("got %v, want an error with %q", err, says)
				}
				if err != nil && strings.Contains(err.Error(), "hunter2") {
					t.Errorf("a credential is in the error: %v", err)
				}
				if got := th.requests(); got != "" {
					t.Errorf("the other host was asked:\n%s", got)
				}
			})
		}
	}
}

// Blobs are often elsewhere. The registry's token does not go there, be it another host or another port of the same.
func TestRedirectTakesNoToken(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "127.0.0.2:0"} {
		t.Run(address, func(t *testing.T) {
			th := startThief(t, address)
			reg := imagetest.Start(t)
			imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
			tokens := imagetest.StartTokenServer(t, map[string]string{"alice": "hunter2-of-alice"})
			guard := tokens.Guard()
			reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				guard(w, r, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, "/blobs/") {
						http.Redirect(w, r, "http://"+th.host+"/blob", http.StatusTemporaryRedirect)
						return
					}
					next.ServeHTTP(w, r)
				}))
			})
			store := imagetest.Store(t, reg.Host, tokens.Host, th.host)
			root, err := resolve(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v1"),
				image.PullOptions{Keyring: keyring{reg.Host: {{Username: "alice", Password: "hunter2-of-alice"}}}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = root.Object(t.Context())
			wantError(t, err, image.ErrDigestMismatch, "") // what a thief serves
			got := th.requests()
			if got == "" || strings.Contains(got, "Authorization") || strings.Contains(got, "token-") || strings.Contains(got, "hunter2") {
				t.Errorf("the other host got\n%s", got)
			}
		})
	}
}

// Each pod pulls by tokens of its own, with a password or an identity token, and gives nobody a token of another.
func TestTokensAreNotSharedBetweenPods(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	tokens := imagetest.StartTokenServer(t, map[string]string{"alice": "hunter2-of-alice", "bob": "hunter2-of-bob", "": "identity-of-carol"})
	reg.Intercept(tokens.Guard())
	store := imagetest.Store(t, reg.Host, tokens.Host)
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	for _, who := range []struct {
		credential image.Credential
		asked      string // names at the token server
		fails      bool
	}{
		{image.Credential{Username: "alice", Password: "hunter2-of-alice"}, "alice", false},
		{image.Credential{Username: "bob", Password: "hunter2-of-bob"}, "bob", false},
		{image.Credential{Username: "carol", IdentityToken: "identity-of-carol"}, "", false},
		{image.Credential{Username: "mallory", Password: "hunter2-of-alice"}, "mallory,", true}, // and then without
		{image.Credential{}, ",", true},
	} {
		_, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullAlways, Keyring: keyring{reg.Host: {who.credential}}})
		if (err != nil) != who.fails {
			t.Errorf("%s: %v", who.credential.Username, err)
		}
		if got := strings.Join(tokens.Asked(), ","); got != who.asked {
			t.Errorf("for %s tokens were given to %q, want %q", who.credential.Username, got, who.asked)
		}
	}
}

// A registry that repeats what it was sent, in a place that would end up in an error, brings it to no reader of events.
func TestRegistryThatRepeatsCredentials(t *testing.T) {
	const password = "hunter2-of-alice"
	raw := func(w http.ResponseWriter, text string) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, text+"\r\n\r\n")
	}
	for name, answer := range map[string]func(w http.ResponseWriter, auth string){
		"NoHTTP":        func(w http.ResponseWriter, _ string) { raw(w, password) },
		"NoHTTPEncoded": func(w http.ResponseWriter, auth string) { raw(w, strings.ReplaceAll(auth, " ", "-")) },
		"Status":        func(w http.ResponseWriter, _ string) { raw(w, "HTTP/1.1 "+password) },
		"Header":        func(w http.ResponseWriter, _ string) { raw(w, "HTTP/1.1 200 OK\r\n"+password) },
		"Location": func(w http.ResponseWriter, _ string) {
			raw(w, "HTTP/1.1 307 x\r\nContent-Length: 0\r\nLocation: http://["+password)
		},
		"LocationCut": func(w http.ResponseWriter, _ string) {
			raw(w, "HTTP/1.1 307 x\r\nContent-Length: 0\r\nLocation: http://["+strings.Repeat("x", 60)+password)
		},
		"LocationEncoded": func(w http.ResponseWriter, auth string) {
			raw(w, "HTTP/1.1 307 x\r\nContent-Length: 0\r\nLocation: http://["+auth)
		},
		"Length": func(w http.ResponseWriter, _ string) { raw(w, "HTTP/1.1 200 OK\r\nContent-Length: "+password) },
		"Digest": func(w http.ResponseWriter, _ string) {
			raw(w, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: x\r\nDocker-Content-Digest: "+password)
		},
		"Type": func(w http.ResponseWriter, _ string) {
			raw(w, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: "+password)
		},
		"Realm": func(w http.ResponseWriter, _ string) {
			raw(w, "HTTP/1.1 401 x\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer realm=\"ftp://"+password+"\"")
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg := imagetest.Start(t)
			reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				if auth := r.Header.Get("Authorization"); auth != "" {
					answer(w, auth)
					return
				}
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
			})
			ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
			_, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{Keyring: keyring{reg.Host: {{Username: "alice", Password: password}}}})
			if err == nil {
				t.Fatal("it was pulled")
			}
			if strings.Contains(err.Error(), password[:4]) || strings.Contains(err.Error(), "YWxpY2U6") {
				t.Errorf("the error tells: %v", err)
			}
		})
	}
}
