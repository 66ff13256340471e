// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// A pod with the least rights there are, a user namespace among them, writes a map of its volume, and the program goes on from
// what it wrote. What was not granted it cannot write.
func TestPodWritesAMap(t *testing.T) {
	c := start(t)
	c.deploy(t, asProcess(new(process)))
	c.nothingLeft(t)
	c.pushWriter(t)
	c.profiles(t)
	file := c.signedByUs(t, "../../deploy/examples/writable-map.yaml")
	c.applyFiles(t, file)
	t.Cleanup(func() { c.deleteFiles(t, file) })
	c.awaitReady(t, "writable", "flows")
	const packets = 100
	if err := c.World.SendUDP(packets); err != nil {
		t.Fatal(err)
	}
	if got := c.packets(t, "writable", "flows"); got != 1_000_000+packets {
		t.Errorf("the pod reads %d packets, want %d from %d on", got, packets, 1_000_000)
	}
	if got := c.exec(t, "writable", "flows", "ls", "/bpf/rw"); got != "flows\n" {
		t.Errorf("files in rw: %q", got)
	}
	for _, attempt := range []string{"rm /bpf/rw/flows", "mv /bpf/rw/flows /bpf/rw/x", "mkdir /bpf/rw/x", "rm /bpf/maps/flows"} {
		got := c.exec(t, "writable", "flows", "sh", "-c", attempt+" 2>&1; true")
		if !strings.Contains(got, "Read-only file system") {
			t.Errorf("%s: %q", attempt, got)
		}
	}
}

// pushWriter puts the image of the example that writes into the registry.
func (c *cluster) pushWriter(t *testing.T) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "writer")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-trimpath", "-o", binary, "./deploy/examples/writer")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	image, err := k8s.Image([]string{"/writer"}, nil, k8s.File{Path: "/writer", From: binary})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Push(t.Context(), "ghcr.io/acme/writer:v1", image); err != nil {
		t.Fatal(err)
	}
}

// profiles puts the seccomp profiles where the chart does.
func (c *cluster) profiles(t *testing.T) {
	t.Helper()
	dir := c.Path("/var/lib/kubelet/seccomp/bpfvol")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../deploy/seccomp/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no profiles: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

var publicKey = regexp.MustCompile(`(?s)-----BEGIN PUBLIC KEY-----.*-----END PUBLIC KEY-----`)

// signedByUs is an example with the key of the tests in the place of acme's.
func (c *cluster) signedByUs(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(c.keyPrefix() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if !publicKey.Match(text) {
		t.Fatalf("%s: no key", file)
	}
	ours := strings.ReplaceAll(strings.TrimSpace(string(key)), "\n", "\n        ")
	there := filepath.Join(t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(there, publicKey.ReplaceAll(text, []byte(ours)), 0o644); err != nil {
		t.Fatal(err)
	}
	return there
}
