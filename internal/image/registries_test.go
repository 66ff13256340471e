// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRegistriesFileIsStrict(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registries.yaml")
	for file, says := range map[string]string{
		"registries: [{host: a.example, plainHTTPS: true}]": "plainHTTPS",
		"registrys: []":    "registrys",
		"registries: [{}]": "registries[0]",
		"registries: [{host: 'https://a.example'}]":                  "registries[0]",
		"registries: [{host: a.example}, {host: A.example}]":         "listed twice",
		"registries: [{host: a.example, mirrors: ['b/c']}]":          "mirror",
		"registries: [{host: a.example, caFile: /nowhere}]":          "/nowhere",
		"registries: [{host: a.example, caFile: /proc/self/status}]": "no certificate",
		"registries: 1": "registries",
		"{":             "registries",
	} {
		write(t, path, file)
		if _, err := image.LoadRegistries(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want an error with %q", file, err, says)
		}
	}
	for _, file := range []string{"", "registries:\n", "denyUnlisted: true", "registries: [{host: '[::1]:5000', plainHTTP: true, mirrors: [m.example]}]"} {
		write(t, path, file)
		if _, err := image.LoadRegistries(path); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Names and addresses that lead to the node itself or to its metadata service are refused before any traffic.
func TestHostRules(t *testing.T) {
	store := imagetest.Store(t)
	for _, host := range []string{
		"127.0.0.1:5000", "10.1.2.3", "169.254.169.254", "[::1]:5000", "[fe80::1]", "[::ffff:127.0.0.1]", "0.0.0.0",
		"localhost:5000", "LOCALHOST", "a.localhost", "8.8.8.8",
		"[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:7f00:1]:443", "[::ffff:169.254.169.254]:80", "[64:ff9b::7f00:1]", "[FE80::1]",
		"2130706433:5000", "127.1", "0x7f000001:80", "0177.0.0.1", "0x7F.0.0.1", "1.2.3", "a.1:5000", "127.0.0.1:443",
	} {
		err := open(t, store, imagetest.Reference(t, host+"/acme/count:v1"))
		wantError(t, err, image.ErrHostNotAllowed, "--registries")
	}
	// What is no host name at all is no reference.
	for _, host := range []string{"localhost.", "127.0.0.1.", "[fe80::1%25eth0]", "[::1", "0x7f000001.:80", "user@localhost", "localhost:080", "localhost:0x50"} {
		if ref, err := image.ParseReference(host + "/acme/count:v1"); !errors.Is(err, image.ErrReference) {
			t.Errorf("%s: got %v, %v", host, ref, err)
		}
	}
	// What lists one port lists no other.
	reg := imagetest.Start(t)
	for _, host := range []string{"127.0.0.1", "127.0.0.1:1", "127.0.0.1:443", "[::ffff:127.0.0.1]:" + reg.Host[len("127.0.0.1:"):]} {
		err := open(t, imagetest.Store(t, reg.Host), imagetest.Reference(t, host+"/acme/count:v1"))
		wantError(t, err, image.ErrHostNotAllowed, "--registries")
	}
	path := filepath.Join(t.TempDir(), "registries.yaml")
	write(t, path, "denyUnlisted: true\nregistries: [{host: registry.invalid, mirrors: [mirror.invalid]}]")
	hosts, err := image.LoadRegistries(path)
	if err != nil {
		t.Fatal(err)
	}
	strict := imagetest.OpenStore(t, image.Options{Registries: hosts})
	wantError(t, open(t, strict, imagetest.Reference(t, "ghcr.io/acme/count")), image.ErrHostNotAllowed, "registry ghcr.io is not listed")
	wantError(t, open(t, strict, imagetest.Reference(t, "registry.invalid/acme/count")), image.ErrUnavailable, "cannot look up")
}

// This machine's own name is no loopback address to look at, and leads to one.
func TestNameThatLeadsToTheNodeIsRefused(t *testing.T) {
	name := "ip6-loopback"
	if !strings.Contains(string(read(t, "/etc/hosts")), name) {
		t.Skipf("/etc/hosts has no %s", name)
	}
	err := open(t, imagetest.Store(t), imagetest.Reference(t, name+":5000/acme/count:v1"))
	wantError(t, err, image.ErrHostNotAllowed, "leads to this node")
}

func TestTLS(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	server := httptest.NewUnstartedServer(reg)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that should fail
	server.StartTLS()
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	ref := imagetest.Reference(t, host+"/acme/count:v1")
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	load := func(entry string) *image.Store {
		path := filepath.Join(dir, "registries.yaml")
		write(t, path, "registries: [{host: \""+host+"\""+entry+"}]")
		hosts, err := image.LoadRegistries(path)
		if err != nil {
			t.Fatal(err)
		}
		return imagetest.OpenStore(t, image.Options{Registries: hosts, UserAgent: "bpfvol/test"})
	}
	agents := make(chan string, 16)
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		agents <- r.UserAgent()
		next.ServeHTTP(w, r)
	})
	pull(t, load(", caFile: "+ca), ref, image.PullOptions{})
	if got := <-agents; got != "bpfvol/test" {
		t.Errorf("user agent is %q", got)
	}
	wantError(t, open(t, load(""), ref), image.ErrUnavailable, "unknown authority; set caFile")
	// A registry that is not said to speak plain HTTP is never asked so.
	plain := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	path := filepath.Join(dir, "plain.yaml")
	write(t, path, "registries: [{host: \""+reg.Host+"\"}]")
	hosts, err := image.LoadRegistries(path)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, open(t, imagetest.OpenStore(t, image.Options{Registries: hosts}), plain), image.ErrUnavailable, "set plainHTTP")
}
