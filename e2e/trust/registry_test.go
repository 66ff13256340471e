// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registryKind is a registry that the table runs against.
type registryKind struct {
	name string
	// referrers says that it has the API of OCI 1.1. Without, clients keep the list under a tag.
	referrers bool
	// start returns the registry in place of the node's own; nil: the node's own.
	start func(t *testing.T) http.Handler
}

const (
	inProcess      = "in-process"
	dockerRegistry = "docker-registry"
)

var registryKinds = []registryKind{
	{name: inProcess, referrers: true},
	{name: dockerRegistry, start: startDockerRegistry},
}

// dockerRegistryBinary is where `make setup-test` unpacks Debian's package.
const dockerRegistryBinary = "../../.cache/docker-registry/usr/bin/docker-registry"

// startDockerRegistry runs Debian's registry for the length of the test, on a socket that only this test knows.
func startDockerRegistry(t *testing.T) http.Handler {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		bin, err = exec.LookPath(dockerRegistryBinary)
	}
	if err != nil {
		t.Skip("there is no docker-registry; e2e/setup.sh test fetches it")
	}
	dir := t.TempDir()
	socket, config := filepath.Join(dir, "http.sock"), filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {net: unix, addr: %q, relativeurls: true}\n",
		filepath.Join(dir, "data"), socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	cmd := exec.Command(bin, "serve", config)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			break
		} else if time.Now().After(deadline) {
			cmd.Process.Kill()
			cmd.Wait()
			t.Fatalf("docker-registry does not answer: %v\n%s", err, log.String())
		}
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "docker-registry"})
			r.Out.Host = r.In.Host
		},
		Transport: transport,
		// A client that gives up is none of the log's business.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
}

// refer pushes a manifest that has a subject, and lists it as a client must.
func (r repository) refer(t *testing.T, m ocispec.Manifest) ocispec.Descriptor {
	t.Helper()
	d := r.PutManifest(t, "", m)
	if !r.n.referrers {
		d.ArtifactType = m.ArtifactType
		r.list(t, m.Subject.Digest, d)
	}
	return d
}

// list adds to the list of referrers that a registry without the API has under a tag.
func (r repository) list(t *testing.T, subject digest.Digest, ds ...ocispec.Descriptor) {
	t.Helper()
	tag := strings.Replace(subject.String(), ":", "-", 1)
	var index ocispec.Index
	if raw, found := r.get(t, "manifests/"+tag); found {
		if err := json.Unmarshal(raw, &index); err != nil {
			t.Fatal(err)
		}
	}
	index.MediaType = ocispec.MediaTypeImageIndex
	index.Manifests = append(index.Manifests, ds...)
	r.PutIndex(t, tag, index)
}

// referrers lists what refers to a digest.
func (r repository) referrers(t *testing.T, d digest.Digest) []ocispec.Descriptor {
	t.Helper()
	path := "referrers/" + d.String()
	if !r.n.referrers {
		path = "manifests/" + strings.Replace(d.String(), ":", "-", 1)
	}
	raw, _ := r.get(t, path)
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	return index.Manifests
}

// manifest reads a manifest.
func (r repository) manifest(t *testing.T, reference string) (m ocispec.Manifest, raw []byte) {
	t.Helper()
	raw, found := r.get(t, "manifests/"+reference)
	if !found {
		t.Fatalf("%s has no %s", r.name, reference)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m, raw
}

// get reads a document of the repository.
func (r repository) get(t *testing.T, path string) (raw json.RawMessage, found bool) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.n.Registry+"/v2/"+r.name+"/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	// docker-registry makes something else of a document that one does not say to know.
	req.Header["Accept"] = []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, false
	}
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil {
		t.Fatalf("%s %s: %v", path, resp.Status, err)
	}
	return raw, true
}
