// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// redirect sends requests for a part of the registry on.
func redirect(part string, to func(*http.Request) string) imagetest.Hook {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, part) {
			next.ServeHTTP(w, r)
			return
		}
		http.Redirect(w, r, to(r), http.StatusTemporaryRedirect)
	}
}

// A registry cannot send the node where a reference could not: to itself, to its metadata service, to who is not listed.
func TestRedirectsObeyHostRules(t *testing.T) {
	reg, victim := imagetest.Start(t), imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	_, port, _ := strings.Cut(victim.Host, ":")
	for _, to := range []string{
		"http://" + victim.Host, "https://" + victim.Host, "http://localhost:" + port, "http://LOCALHOST:" + port, "http://localhost.:" + port,
		"http://[::1]:" + port, "http://[::ffff:127.0.0.1]:" + port, "http://2130706433:" + port, "http://0x7f.1:" + port, "http://127.1:" + port,
		"http://169.254.169.254", "http://[fe80::1%25eth0]", "http://a:b@" + victim.Host, "http://ip6-loopback:" + port,
	} {
		for _, part := range []string{"/manifests/v1", "/blobs/"} {
			reg.Intercept(redirect(part, func(r *http.Request) string { return to + r.URL.Path + "?signature=s3cret" }))
			err := open(t, imagetest.Store(t, reg.Host), ref)
			wantError(t, err, image.ErrHostNotAllowed, "")
			if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "http://")) {
				t.Errorf("the text has the URL: %v", err)
			}
		}
	}
	for _, scheme := range []string{"file:///etc/passwd", "gopher://" + victim.Host, "unix:///run/bpfvol/csi.sock"} {
		reg.Intercept(redirect("/blobs/", func(*http.Request) string { return scheme }))
		if err := open(t, imagetest.Store(t, reg.Host), ref); err == nil {
			t.Errorf("%s was followed", scheme)
		}
	}
	if got := victim.Requests(); len(got) > 0 {
		t.Errorf("it was contacted: %q", got)
	}
}

// Nor can it by naming a token server.
func TestTokenServersObeyHostRules(t *testing.T) {
	reg, victim := imagetest.Start(t), imagetest.Start(t)
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	for _, realm := range []string{"http://" + victim.Host + "/token", "https://169.254.169.254/token", "http://localhost/token", "https://2130706433/token", "file:///etc/passwd", "\x01"} {
		for _, k := range []image.Keyring{nil, keyring{reg.Host: {{Username: "u", Password: "s3cret"}}}} {
			reg.Intercept(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q,service=\"x\"", realm))
				w.WriteHeader(http.StatusUnauthorized)
			})
			_, err := resolve(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{Keyring: k})
			if err == nil || strings.Contains(err.Error(), "s3cret") || len(err.Error()) > 700 || strings.ContainsAny(err.Error(), "\n\x01") {
				t.Errorf("%q: got %v", realm, err)
			}
		}
	}
	if got := victim.Requests(); len(got) > 0 {
		t.Errorf("it was contacted: %q", got)
	}
}

func TestRedirectsEnd(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	hops := func(n int) imagetest.Hook {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if at := len(r.URL.Query()["hop"]); strings.Contains(r.URL.Path, "/blobs/") && at < n {
				http.Redirect(w, r, "http://"+reg.Host+r.URL.Path+"?"+strings.Repeat("hop=1&", at+1), http.StatusTemporaryRedirect)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
	reg.Intercept(hops(5))
	if err := open(t, imagetest.Store(t, reg.Host), ref); err != nil {
		t.Errorf("after 5 redirects: %v", err)
	}
	reg.Intercept(hops(1 << 20))
	wantError(t, open(t, imagetest.Store(t, reg.Host), ref), image.ErrUnavailable, "redirects more than 5 times")
}

// Who was asked by HTTPS does not send the node on to plain HTTP, not even where that host may be asked so.
func TestRedirectKeepsHTTPS(t *testing.T) {
	reg, plain := imagetest.Start(t), imagetest.Start(t)
	for _, s := range []*imagetest.Server{reg, plain} {
		imagetest.PushImage(t, s.Host, "acme/count", "v1", bpf.Count())
	}
	server := httptest.NewTLSServer(reg)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	hosts := withDir(t, map[string]string{host + "/x.crt": ca, plain.Host + "/hosts.toml": "server = \"http://" + plain.Host + "\""})
	reg.Intercept(redirect("/blobs/", func(r *http.Request) string { return "http://" + plain.Host + r.URL.Path }))
	plain.Requests()
	err := open(t, imagetest.OpenStore(t, image.Options{Registries: hosts}), imagetest.Reference(t, host+"/acme/count:v1"))
	wantError(t, err, image.ErrHostNotAllowed, "from HTTPS to plain HTTP")
	if got := plain.Requests(); len(got) > 0 {
		t.Errorf("it was followed: %q", got)
	}
}
