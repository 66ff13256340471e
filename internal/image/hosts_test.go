// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// hostsDir writes a directory as containerd has it, from path to content.
func hostsDir(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path, content)
	}
	return dir
}

func withDir(t testing.TB, files map[string]string) image.Registries {
	t.Helper()
	var r image.Registries
	if err := r.AddDir(hostsDir(t, files)); err != nil {
		t.Fatal(err)
	}
	return r
}

// asked drains what servers were asked, each as "<name> <path>".
func asked(servers map[string]*imagetest.Server) []string {
	var out []string
	for name, s := range servers {
		for _, r := range s.Requests() {
			out = append(out, name+" "+strings.TrimPrefix(r, "GET "))
		}
	}
	slices.Sort(out)
	return out
}

// The hosts of a file are asked in its order, then the server; the registry itself where the file names none.
func TestHostsFileGivesTheOrder(t *testing.T) {
	first, second, origin := imagetest.Start(t), imagetest.Start(t), imagetest.Start(t)
	servers := []*imagetest.Server{first, second, origin}
	for i, s := range servers {
		imagetest.PushImage(t, s.Host, "acme/count", "v1", append(bpf.Pass(), byte(i)))
	}
	file := "server = \"http://" + origin.Host + "\"\n" +
		"[host.\"http://" + first.Host + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n" +
		"[host.\"http://" + second.Host + "\"]\n"
	_, port, _ := strings.Cut(origin.Host, ":")
	for _, dir := range []string{origin.Host, "127.0.0.1_" + port + "_"} {
		hosts := withDir(t, map[string]string{dir + "/hosts.toml": file})
		for i, s := range servers {
			o := pull(t, imagetest.OpenStore(t, image.Options{Registries: hosts}), imagetest.Reference(t, origin.Host+"/acme/count:v1"), image.PullOptions{})
			if got := int(o.ELF[len(o.ELF)-1]); got != i {
				t.Errorf("%s: with the first %d hosts broken, server %d answered", dir, i, got)
			}
			s.Intercept(imagetest.Status("", http.StatusBadGateway))
		}
		for _, s := range servers {
			s.Intercept(nil)
		}
	}
}

// A mirror that is told to be for every registry is told which one is meant; a registry itself is not.
func TestMirrorIsToldTheRegistry(t *testing.T) {
	mirror := imagetest.Start(t)
	imagetest.PushImage(t, mirror.Host, "acme/count", "v1", bpf.Count())
	var queries []string
	mirror.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		queries = append(queries, r.URL.Query().Get("ns"))
		next.ServeHTTP(w, r)
	})
	hosts := withDir(t, map[string]string{"_default/hosts.toml": "server = \"http://" + mirror.Host + "\""})
	store := imagetest.OpenStore(t, image.Options{Registries: hosts})
	pull(t, store, imagetest.Reference(t, "registry.invalid:5000/acme/count:v1"), image.PullOptions{})
	if want := []string{"registry.invalid:5000", "registry.invalid:5000", "registry.invalid:5000"}; !slices.Equal(queries, want) {
		t.Errorf("ns is %q, want %q", queries, want)
	}
	queries = nil
	pull(t, store, imagetest.Reference(t, mirror.Host+"/acme/count:v1"), image.PullOptions{})
	if slices.ContainsFunc(queries, func(s string) bool { return s != "" }) {
		t.Errorf("asked for its own image, ns is %q", queries)
	}
	// An address is no name that the mirror may be sent to, either.
	mirror.Requests()
	wantError(t, open(t, store, imagetest.Reference(t, "169.254.169.254/acme/count:v1")), image.ErrHostNotAllowed, "--registries")
	if got := mirror.Requests(); len(got) > 0 {
		t.Errorf("the mirror was asked %q", got)
	}
}

// A mirror without the capability resolve is not asked what a tag stands for, only for what a digest names.
func TestMirrorThatOnlyPullsIsAskedByDigest(t *testing.T) {
	mirror, origin := imagetest.Start(t), imagetest.Start(t)
	imagetest.PushImage(t, mirror.Host, "acme/count", "v1", bpf.Pass())
	imagetest.PushImage(t, mirror.Host, "acme/count", "v2", bpf.Count())
	d := imagetest.PushImage(t, origin.Host, "acme/count", "v1", bpf.Count())
	hosts := withDir(t, map[string]string{origin.Host + "/hosts.toml": "server = \"http://" + origin.Host + "\"\n" +
		"[host.\"http://" + mirror.Host + "\"]\ncapabilities = [\"pull\"]\n"})
	servers := map[string]*imagetest.Server{"mirror": mirror, "origin": origin}
	asked(servers)
	root, err := resolve(t, imagetest.OpenStore(t, image.Options{Registries: hosts}), imagetest.Reference(t, origin.Host+"/acme/count:v1"), image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if root.Digest != d {
		t.Errorf("got %s, want the registry's %s", root.Digest, d)
	}
	if got, want := asked(servers), []string{"origin /v2/acme/count/manifests/v1"}; !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
	if _, err := root.Object(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := asked(servers); len(got) != 2 || !strings.HasPrefix(got[0], "mirror /v2/acme/count/blobs/sha256:") || !strings.HasPrefix(got[1], "mirror /v2/acme/count/manifests/sha256:") {
		t.Errorf("asked %q, want manifest and blob of the mirror", got)
	}

	only := withDir(t, map[string]string{origin.Host + "/hosts.toml": "server = \"http://" + mirror.Host + "\"\ncapabilities = [\"pull\"]\n"})
	store := imagetest.OpenStore(t, image.Options{Registries: only})
	wantError(t, open(t, store, imagetest.Reference(t, origin.Host+"/acme/count:v1")), image.ErrHostNotAllowed, "name the image by digest")
	pull(t, store, imagetest.Reference(t, origin.Host+"/acme/count@"+d.String()), image.PullOptions{})
}

// Signatures are looked up where the image is, in the same order, and the last word is the server's.
func TestSignaturesFollowTheHostsFile(t *testing.T) {
	mirror, origin := imagetest.Start(t), imagetest.Start(t)
	ref := signed(t, origin)
	imagetest.PushImage(t, mirror.Host, "acme/count", "v1", bpf.Count())
	hosts := withDir(t, map[string]string{origin.Host + "/hosts.toml": "server = \"http://" + origin.Host + "\"\n[host.\"http://" + mirror.Host + "\"]\n"})
	root, err := resolve(t, imagetest.OpenStore(t, image.Options{Registries: hosts}), ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantSignatures(t, root, false, three())
	found := false
	for _, r := range mirror.Requests() {
		found = found || strings.Contains(r, "/referrers/")
	}
	if !found {
		t.Error("the mirror was not asked for signatures")
	}
}

// A proxy that keeps other registries below a path: with /v2 before it, which makes it part of the repository's name, or
// after it, or with no /v2 at all.
func TestHostsFilePaths(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "hub/acme/count", "v1", bpf.Count())
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	strip := func(prefix string) imagetest.Hook {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			rest, ok := strings.CutPrefix(r.URL.Path, prefix)
			if !ok {
				w.WriteHeader(http.StatusTeapot)
				return
			}
			r.URL.Path = "/v2" + rest
			next.ServeHTTP(w, r)
		}
	}
	for server, hook := range map[string]imagetest.Hook{
		"/v2/hub\"\noverride_path = true":   nil,
		"/deep/proxy\"":                     strip("/deep/proxy/v2"),
		"/deep/v2/\"":                       strip("/deep/v2"),
		"/deep/proxy\"\noverride_path=true": strip("/deep/proxy"),
		"\"\noverride_path=true":            strip(""),
	} {
		reg.Intercept(hook)
		hosts := withDir(t, map[string]string{"registry.invalid/hosts.toml": "server = \"http://" + reg.Host + server})
		root, err := resolve(t, imagetest.OpenStore(t, image.Options{Registries: hosts}), imagetest.Reference(t, "registry.invalid/acme/count:v1"), image.PullOptions{})
		if err != nil {
			t.Errorf("%s: %v", server, err)
			continue
		}
		if _, err := root.Signatures(t.Context(), true); err != nil {
			t.Errorf("%s: %v", server, err)
		}
		if _, err := root.Object(t.Context()); err != nil {
			t.Errorf("%s: %v", server, err)
		}
	}
}

// Headers of a hosts.toml go to the host that they were written for. Whoever that redirects to gets none.
func TestHeadersStayWithTheirHost(t *testing.T) {
	reg, blobs := imagetest.Start(t), imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	imagetest.PushImage(t, blobs.Host, "acme/count", "v1", bpf.Count())
	var got, leaked []string
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		got = append(got, r.Header.Get("X-Token")+strings.Join(r.Header.Values("X-List"), "+"))
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, "http://"+blobs.Host+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		next.ServeHTTP(w, r)
	})
	blobs.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		leaked = append(leaked, r.Header.Get("X-Token"), r.URL.Query().Get("ns"))
		next.ServeHTTP(w, r)
	})
	hosts := withDir(t, map[string]string{
		"registry.invalid/hosts.toml": "server = \"http://" + reg.Host + "\"\n[header]\nx-token = \"secret\"\nx-list = [\"a\", \"b\"]\n",
		blobs.Host + "/hosts.toml":    "server = \"http://" + blobs.Host + "\"",
	})
	pull(t, imagetest.OpenStore(t, image.Options{Registries: hosts}), imagetest.Reference(t, "registry.invalid/acme/count:v1"), image.PullOptions{})
	if len(got) != 3 || slices.ContainsFunc(got, func(s string) bool { return s != "secreta+b" }) {
		t.Errorf("the host got %q", got)
	}
	if !slices.Equal(leaked, []string{"", ""}) {
		t.Errorf("where it redirects to got %q", leaked)
	}
}

// Authorities, client certificates and skip_verify are those of one host; so are the files that docker puts there.
func TestHostsFileTLS(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	server := httptest.NewUnstartedServer(reg)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that should fail
	cert, key := clientCertificate(t)
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM([]byte(cert))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	for name, files := range map[string]map[string]string{
		"Files":      {"x.crt": ca, "x.cert": cert, "x.key": key},
		"OneFile":    {"x.crt": ca, "x.cert": cert + key},
		"Pair":       {"ca.pem": ca, "c.pem": cert, "k.pem": key, "hosts.toml": "ca = \"ca.pem\"\nclient = [[\"c.pem\", \"k.pem\"]]"},
		"List":       {"ca.pem": ca, "c.pem": cert + key, "hosts.toml": "ca = [\"ca.pem\", \"ca.pem\"]\nclient = [\"c.pem\"]"},
		"String":     {"ca.pem": ca, "c.pem": cert + key, "hosts.toml": "ca = \"ca.pem\"\nclient = \"c.pem\""},
		"EmptyKey":   {"ca.pem": ca, "c.pem": cert + key, "hosts.toml": "ca = \"ca.pem\"\nclient = [[\"c.pem\", \"\"]]"},
		"Host":       {"ca.pem": ca, "c.pem": cert + key, "hosts.toml": "[host.\"https://" + host + "\"]\nca = \"ca.pem\"\nclient = \"c.pem\"\ndial_timeout = \"3s\"\n"},
		"SkipVerify": {"c.pem": cert + key, "hosts.toml": "skip_verify = true\nclient = \"c.pem\""},
	} {
		t.Run(name, func(t *testing.T) {
			placed := map[string]string{}
			origin := host
			if name == "Host" {
				origin = "registry.invalid"
			}
			for file, content := range files {
				placed[origin+"/"+file] = content
			}
			store := imagetest.OpenStore(t, image.Options{Registries: withDir(t, placed)})
			pull(t, store, imagetest.Reference(t, origin+"/acme/count:v1"), image.PullOptions{})
		})
	}
	t.Run("NoClient", func(t *testing.T) {
		store := imagetest.OpenStore(t, image.Options{Registries: withDir(t, map[string]string{host + "/x.crt": ca})})
		wantError(t, open(t, store, imagetest.Reference(t, host+"/acme/count:v1")), image.ErrUnavailable, "")
	})
	t.Run("NoAuthority", func(t *testing.T) {
		store := imagetest.OpenStore(t, image.Options{Registries: withDir(t, map[string]string{host + "/x.cert": cert, host + "/x.key": key})})
		wantError(t, open(t, store, imagetest.Reference(t, host+"/acme/count:v1")), image.ErrUnavailable, "unknown authority")
	})
}

func clientCertificate(t testing.TB) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}

// What containerd skips or takes for something else is an error that names the file and the key, and no value: a header
// may be a secret.
func TestHostsFileIsStrict(t *testing.T) {
	for name, tt := range map[string]struct{ content, says string }{
		"UnknownKey":      {"servers = \"x\"", `unknown key "servers"`},
		"UnknownHostKey":  {"[host.\"https://m.example\"]\ncapability = [\"pull\"]", `unknown key "host.\"https://m.example\".capability"`},
		"Proxy":           {"proxy = \"http://p.example\"", `unknown key "proxy"`},
		"Capability":      {"capabilities = [\"pul\"]", `unknown capability "pul"`},
		"ResolveOnly":     {"capabilities = [\"resolve\"]", "resolve without pull"},
		"NobodyPulls":     {"capabilities = [\"push\"]", "no host has the capability pull"},
		"Syntax":          {"server = \n[header]\nx = 's3cret", "line 1"},
		"Type":            {"skip_verify = \"s3cret\"", "skip_verify: not true or false"},
		"ServerType":      {"server = 1", "server: not a string"},
		"HostType":        {"host = 1", "host: not a table"},
		"HeaderTable":     {"header = 's3cret'", "header: not a table"},
		"CAType":          {"ca = 1", "ca: not a file"},
		"CAMissing":       {"ca = \"nowhere.pem\"", "nowhere.pem"},
		"CAEmpty":         {"ca = \"hosts.toml\"", "no certificate in it"},
		"ClientType":      {"client = [[\"a\", \"b\", \"c\"]]", "client: not a file"},
		"ClientMissing":   {"client = \"nowhere.pem\"", "nowhere.pem"},
		"Scheme":          {"[host.\"ftp://m.example\"]", "not a URL"},
		"UserInfo":        {"server = \"https://user:s3cret@m.example\"", "not a URL"},
		"Query":           {"server = \"https://m.example?token=s3cret\"", "not a URL"},
		"BadHost":         {"server = \"https://m_example\"", "not a host name"},
		"BadPath":         {"server = \"https://m.example/v2/UPPER\"\noverride_path = true", "not that of a repository"},
		"CAOverPlainHTTP": {"server = \"http://m.example\"\nca = \"hosts.toml\"", "write https://"},
		"HeaderName":      {"[header]\n\"x y\" = \"s3cret\"", `header "x y"`},
		"HeaderHost":      {"[header]\nhost = \"s3cret\"", `header "host"`},
		"HeaderValue":     {"[header]\nx = \"s3cret\\r\\ny: z\"", `header "x": its value has control characters`},
		"HeaderType":      {"[header]\nx = 1", `header "x": not a string`},
		"DialTimeout":     {"dial_timeout = \"soon\"", `dial_timeout: "soon"`},
		"Differs":         {"server = \"https://m.example\"\n[host.\"http://m.example\"]", "differ in how it is reached"},
	} {
		var r image.Registries
		err := r.AddDir(hostsDir(t, map[string]string{"a.example/hosts.toml": tt.content}))
		if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "a.example") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got %v, want an error with %q", name, err, tt.says)
		}
	}
	for _, files := range []map[string]string{
		{"UPPER_5000_/hosts.toml": "", "upper:5000/hosts.toml": ""},
		{"not a host/hosts.toml": ""},
		{"_default/hosts.toml": "skip_verify = true"},
		{"_default/hosts.toml": "[header]\nx = \"y\""},
		{"_default/x.crt": ""},
		{"a.example/hosts.toml": strings.Repeat("#", 1<<20+1)},
	} {
		var r image.Registries
		if err := r.AddDir(hostsDir(t, files)); err == nil {
			t.Errorf("%q: no error", slices.Collect(maps.Keys(files)))
		}
	}
	var r image.Registries
	if err := r.AddDir(filepath.Join(t.TempDir(), "nowhere")); err == nil {
		t.Error("a directory that does not exist: no error")
	}
	// What kubelet puts beside a ConfigMap's files, and files beside the directories, say nothing.
	withDir(t, map[string]string{"README": "x", "..data/UP PER/hosts.toml": "", "b.example/ca.pem": ""})
}

// File and directory are one list: what both say of a host must agree, and a registry is described in one of them.
func TestFileAndDirectoryTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registries.yaml")
	for name, tt := range map[string]struct {
		yaml, toml, says string
	}{
		"Apart":         {"[{host: b.example}]", "", ""},
		"Both":          {"[{host: a.example}]", "", "described elsewhere"},
		"SameMirror":    {"[{host: m.example, plainHTTP: true}]", "[host.\"http://m.example\"]", ""},
		"OtherMirror":   {"[{host: m.example}]", "[host.\"http://m.example\"]", "differ in how it is reached"},
		"NamedMirror":   {"[{host: b.example, mirrors: [m.example]}]", "[host.\"http://m.example\"]", ""},
		"MirrorOfIt":    {"[{host: b.example, mirrors: [a.example]}]", "skip_verify = true", ""},
		"SkipVerifyTLS": {"[{host: m.example}]", "[host.\"https://m.example\"]\nskip_verify = true", "differ in how it is reached"},
	} {
		write(t, file, "registries: "+tt.yaml)
		r, err := image.LoadRegistries(file)
		if err != nil {
			t.Fatal(err)
		}
		err = r.AddDir(hostsDir(t, map[string]string{"a.example/hosts.toml": tt.toml}))
		if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: got %v, want %q", name, err, tt.says)
		}
	}
}

// What a directory names counts as listed by an admin: addresses, and where only listed hosts may be contacted.
func TestDirectoryLists(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	file := filepath.Join(t.TempDir(), "registries.yaml")
	write(t, file, "denyUnlisted: true")
	hosts, err := image.LoadRegistries(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := hosts.AddDir(hostsDir(t, map[string]string{
		"a.invalid/hosts.toml": "[host.\"http://" + reg.Host + "\"]",
		"_default/hosts.toml":  "[host.\"http://" + reg.Host + "\"]\ncapabilities = [\"pull\", \"resolve\"]",
	})); err != nil {
		t.Fatal(err)
	}
	store := imagetest.OpenStore(t, image.Options{Registries: hosts})
	for _, name := range []string{reg.Host, "a.invalid", "unlisted.invalid"} {
		pull(t, store, imagetest.Reference(t, name+"/acme/count:v1"), image.PullOptions{})
	}
	reg.Intercept(imagetest.Status("", http.StatusBadGateway))
	always := image.PullOptions{Policy: volume.PullAlways}
	_, err = resolve(t, store, imagetest.Reference(t, "a.invalid/acme/count:v1"), always)
	wantError(t, err, image.ErrUnavailable, "cannot look up")
	_, err = resolve(t, store, imagetest.Reference(t, "unlisted.invalid/acme/count:v1"), always)
	wantError(t, err, image.ErrHostNotAllowed, "unlisted.invalid is not listed")
}
