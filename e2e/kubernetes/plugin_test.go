// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// A deployment is a way to run the plugin on the node. It returns what takes it away again, which leaves the volumes alone.
type deployment func(t *testing.T, c *cluster) (remove func())

// pluginNamespace is that of the plugin's own objects.
const pluginNamespace = "bpfvol-system"

// deploy runs the plugin until the test ends, and returns when kubelet knows it.
func (c *cluster) deploy(t *testing.T, how deployment) {
	t.Helper()
	remove := how(t, c)
	t.Cleanup(remove)
	t.Cleanup(func() { c.archiveIfFailed(t) }) // with the plugin's log
	c.awaitDriver(t, true)
}

// asDaemonSet deploys the plugin from plain manifests: testdata/daemonset.yaml and what docs/policy.md says to apply.
func asDaemonSet(t *testing.T, c *cluster) func() {
	t.Helper()
	crd, rbac, driver := "../../deploy/crd", "../../deploy/rbac.yaml", "../../deploy/csidriver.yaml"
	c.applyFiles(t, crd, "testdata/namespace.yaml")
	c.applyFiles(t, rbac, driver, "testdata/daemonset.yaml")
	return func() {
		// The plugin last: kubelet needs it to take volumes away.
		c.deleteFiles(t, "testdata/daemonset.yaml")
		c.awaitDriver(t, false)
		c.deleteFiles(t, rbac, driver, "testdata/namespace.yaml", crd)
	}
}

// process is the plugin as a process on the node, which can be killed.
type process struct {
	c          *cluster
	kubeconfig string
	cmd        *exec.Cmd
}

// asProcess runs the plugin without a container.
func asProcess(p *process) deployment {
	return func(t *testing.T, c *cluster) func() {
		t.Helper()
		crd, rbac, driver := "../../deploy/crd", "../../deploy/rbac.yaml", "../../deploy/csidriver.yaml"
		c.applyFiles(t, crd, "testdata/namespace.yaml")
		c.applyFiles(t, rbac, driver)
		p.c, p.kubeconfig = c, c.ServiceAccount(t, pluginNamespace, "bpfvol")
		p.start(t)
		return func() {
			p.stop(t, syscall.SIGTERM)
			c.awaitDriver(t, false)
			c.deleteFiles(t, rbac, driver, "testdata/namespace.yaml", crd)
		}
	}
}

// start starts it, again after stop.
func (p *process) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(p.c.Dir(), "bpfvol.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.c.plugin(version), "serve", "--register", "--node-id="+k8s.NodeName, "--kubeconfig="+p.kubeconfig, "--registries=/etc/bpfvol/registries.yaml")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.c.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
}

func (p *process) stop(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil && signal != syscall.SIGKILL {
		t.Errorf("the plugin ended by %v: %v", signal, err)
	}
}

// awaitDriver waits until kubelet knows the plugin, or does not any more.
func (c *cluster) awaitDriver(t *testing.T, known bool) {
	t.Helper()
	c.await(t, "/apis/storage.k8s.io/v1/csinodes/"+k8s.NodeName, func(object json.RawMessage) (bool, error) {
		var node struct {
			Spec struct{ Drivers []struct{ Name string } }
		}
		if object != nil {
			if err := json.Unmarshal(object, &node); err != nil {
				return false, err
			}
		}
		found := false
		for _, d := range node.Spec.Drivers {
			found = found || d.Name == "csi.bpfvol.io"
		}
		return found == known, nil
	})
}

// policy admits what the key of the tests signed, for the service account default of a namespace.
func (c *cluster) policy(t *testing.T, namespace string) {
	t.Helper()
	key, err := os.ReadFile(c.keyPrefix() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(t, fmt.Sprintf("apiVersion: bpfvol.io/v1alpha1\nkind: BytecodePolicy\nmetadata: {name: acme}\nspec:\n  images: [ghcr.io/acme/**]\n  authorities:\n  - key:\n      data: |\n        %s\n",
		strings.ReplaceAll(strings.TrimSpace(string(key)), "\n", "\n        ")))
	c.GrantUse(t, "acme", namespace, "default")
	t.Cleanup(func() {
		c.kubectl(t, "delete", "bytecodepolicy/acme", "clusterrole/use-acme")
	})
}
