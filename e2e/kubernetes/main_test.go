// SPDX-License-Identifier: Apache-2.0

//go:build e2e

// Package kubernetes_test runs bpfvol in a real cluster of one node (e2e/k8s): kubelet calls the plugin, containers read the
// volumes, and everything is applied as a user applies it.
//
//	func TestSomething(t *testing.T) {
//		c := start(t)                        // the node and the plugin on it, which all tests share
//		c.nothingLeft(t)                     // checked at the end
//		c.example(t, "counter.yaml")         // of deploy/examples
//		c.awaitReady(t, "demo", "counter")
//		...
//
// It has a build tag, as it takes minutes: make e2e.
package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
	"github.com/bpfvol/bpfvol/e2e/k8s"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestMain(m *testing.M) { os.Exit(bpftest.Run(shared{m})) }

// shared takes the node down after the last test, so that what it leaves counts.
type shared struct{ m *testing.M }

func (s shared) Run() int {
	code := s.m.Run()
	if err := closeCluster(); err != nil {
		fmt.Fprintln(os.Stderr, "take the node down:", err)
		code = max(code, 1)
	}
	return code
}

// cluster is a node with images in its registry, and the plugin as binaries and images of two versions.
type cluster struct {
	*k8s.Node
	dir       string          // of this machine: binaries, the signing key, the cache of the command line
	installed bool            // the plugin is
	archived  map[string]bool // tests whose failure is
}

// The image references of the tests, as manifests have them.
const (
	pluginRepository = "ghcr.io/bpfvol/bpfvol" // with a version as its tag
	busyboxImage     = "docker.io/library/busybox:1.37"
	chartTestImage   = "ghcr.io/bpfvol/count:v1" // bytecode: the counter, under a name that no policy of an example covers
)

var theCluster struct {
	sync.Once
	*cluster
	err error
}

// start returns the node, with the plugin on it: the first test starts it.
func start(t *testing.T) *cluster {
	t.Helper()
	bpftest.Root(t)
	theCluster.Do(func() {
		started := time.Now()
		theCluster.cluster, theCluster.err = newCluster(context.WithoutCancel(t.Context()))
		t.Logf("the node is ready after %s", time.Since(started).Round(100*time.Millisecond))
	})
	if theCluster.err != nil {
		t.Fatal(theCluster.err)
	}
	theCluster.install(t)
	return theCluster.cluster
}

func closeCluster() error {
	c := theCluster.cluster
	if c == nil {
		return nil
	}
	var err error
	if c.Node != nil {
		err = c.Close()
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}

func newCluster(ctx context.Context) (*cluster, error) {
	dir, err := os.MkdirTemp("", "bpfvol-e2e-")
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, archived: map[string]bool{}}
	for _, step := range []func(context.Context) error{c.buildPlugin, c.startNode, c.pushImages, c.pushBytecode} {
		if err := step(ctx); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *cluster) startNode(ctx context.Context) (err error) {
	c.Node, err = k8s.StartNode(ctx)
	if err != nil {
		return err
	}
	// Where this node's plugin finds other registries, which files of users need not know.
	if err := os.MkdirAll(c.Path("/etc/bpfvol"), 0o755); err != nil {
		return err
	}
	hosts := fmt.Sprintf("registries:\n- host: ghcr.io\n  mirrors: [%[1]q]\n- host: %[1]q\n  plainHTTP: true\n", c.Registry())
	return os.WriteFile(c.Path("/etc/bpfvol/registries.yaml"), []byte(hosts), 0o644)
}

// The plugin's versions: what an upgrade is from and to.
const (
	version     = "v1.0.0-e2e"
	nextVersion = "v1.1.0-e2e"
)

// plugin is the binary of a version.
func (c *cluster) plugin(version string) string { return filepath.Join(c.dir, "bpfvol-"+version) }

// provisioner is the binary of `bpfvol provision`.
func (c *cluster) provisioner() string { return filepath.Join(c.dir, "bpfvol-provision") }

// buildPlugin builds it as the Makefile does.
func (c *cluster) buildPlugin(ctx context.Context) error {
	build := func(output, pkg, version string) error {
		return gobuild.Build(ctx, output, "", pkg, "-trimpath", "-ldflags=-s -w -X main.version="+version)
	}
	return errors.Join(
		build(c.provisioner(), "./cmd/bpfvol-provision", version),
		build(c.plugin(version), "./cmd/bpfvol", version),
		build(c.plugin(nextVersion), "./cmd/bpfvol", nextVersion),
	)
}

// pushImages puts the images of containers into the node's registry.
func (c *cluster) pushImages(ctx context.Context) error {
	busybox, err := k8s.Busybox()
	if err != nil {
		return err
	}
	if err := c.Push(ctx, busyboxImage, busybox); err != nil {
		return err
	}
	for _, v := range []string{version, nextVersion} {
		// As the Dockerfile makes it.
		image, err := k8s.Image([]string{"/bpfvol"}, []string{"serve"}, k8s.File{Path: "/bpfvol", From: c.plugin(v)}, k8s.File{Path: "/bpfvol-provision", From: c.provisioner()}, k8s.File{Path: "/LICENSE", From: "../../LICENSE"},
			k8s.File{Path: "/etc/ssl/certs/ca-certificates.crt", From: "/etc/ssl/certs/ca-certificates.crt"})
		if err != nil {
			return err
		}
		if err := c.Push(ctx, pluginRepository+":"+v, image); err != nil {
			return err
		}
	}
	return nil
}

// pushBytecode makes a key, and images of the example programs, all but one of which it signed.
func (c *cluster) pushBytecode(context.Context) error {
	if _, err := c.cli("keygen", "--prefix", c.keyPrefix()); err != nil {
		return err
	}
	for _, image := range []struct {
		reference, object string
		signed            bool
	}{
		{"ghcr.io/acme/count:v1", "count", true},
		{"ghcr.io/acme/firewall:v1", "firewall", true},
		{"ghcr.io/acme/unsigned:v1", "count", false},
		{chartTestImage, "count", true},
	} {
		object, err := filepath.Abs("../../bpf/" + image.object + ".bpf.o")
		if err != nil {
			return err
		}
		there := c.Registry() + "/" + strings.TrimPrefix(image.reference, "ghcr.io/")
		steps := [][]string{{"build", object, "-t", there}}
		if image.signed {
			steps = append(steps, []string{"sign", there, "--key", c.keyPrefix() + ".key"})
		}
		for _, args := range append(steps, []string{"push", there}) {
			if _, err := c.cli(args...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *cluster) keyPrefix() string { return filepath.Join(c.dir, "acme") }

func (c *cluster) publicKey(t *testing.T) string {
	t.Helper()
	key, err := os.ReadFile(c.keyPrefix() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return string(key)
}

// cli runs bpfvol on the node and returns what it prints.
func (c *cluster) cli(args ...string) (string, error) {
	cmd := exec.Command(c.plugin(version), args...)
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=", "BPFVOL_CACHE_DIR="+filepath.Join(c.dir, "cache"), "BPFVOL_REGISTRIES=/etc/bpfvol/registries.yaml")
	out, err := c.Output(cmd)
	if err != nil {
		return "", fmt.Errorf("bpfvol %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return out, nil
}
