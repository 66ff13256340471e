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
	"testing"

	"github.com/bpfvol/bpfvol/e2e/chart"
	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// pluginNamespace is that of the plugin's own objects.
const pluginNamespace = "bpfvol-system"

// install installs deploy/helm/bpfvol as docs/operations.md says, unless an earlier test has. helm itself waits until the pods
// are ready. After a test that fails the plugin is taken away, and the next one begins afresh.
func (c *cluster) install(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			c.archive(t)
			c.uninstall(t)
		}
	})
	if c.installed {
		return
	}
	c.installed = true
	values := filepath.Join(c.dir, "values.yaml")
	if err := os.WriteFile(values, []byte(c.values(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.helm(t, "install", "bpfvol", chart.Dir(), "--namespace", pluginNamespace, "--create-namespace", "-f", values, "--wait", "--timeout", patience.String())
	c.awaitDriver(t, true)
}

// uninstall takes away what install brought.
func (c *cluster) uninstall(t *testing.T) {
	t.Helper()
	c.installed = false
	c.helm(t, "uninstall", "bpfvol", "--namespace", pluginNamespace, "--ignore-not-found", "--wait", "--timeout", patience.String())
	c.awaitDriver(t, false)
	c.kubectl(t, "delete", "--ignore-not-found", "crd/bytecodepolicies.bpfvol.io", "namespace/"+pluginNamespace, "--timeout="+patience.String())
}

// upgrade is what docs/operations.md says: the definitions, then helm, with a value that is another.
func (c *cluster) upgrade(t *testing.T, set string) {
	t.Helper()
	if _, err := c.TryKubectl(t, c.helm(t, "show", "crds", chart.Dir()), "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	c.helm(t, "upgrade", "bpfvol", chart.Dir(), "--namespace", pluginNamespace, "--reuse-values", "--set", set, "--wait", "--timeout", patience.String())
	c.awaitDriver(t, true)
}

// rollback takes back an upgrade.
func (c *cluster) rollback(t *testing.T) {
	t.Helper()
	c.helm(t, "rollback", "bpfvol", "--namespace", pluginNamespace, "--wait", "--timeout", patience.String())
	c.awaitDriver(t, true)
}

// hostsDir is where containerd's users write how registries are reached. Here every image of ghcr.io is in the node's registry.
const hostsDir = "/etc/containerd/certs.d"

// values are the chart's for this cluster, with all that its users switch on.
func (c *cluster) values(t *testing.T) string {
	t.Helper()
	if err := os.MkdirAll(c.Path(hostsDir+"/ghcr.io"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.Path(hostsDir+"/ghcr.io/hosts.toml"), []byte(`server = "http://`+c.Registry()+`"`), 0o644); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`
image: {tag: %q}
registries: {hostsDir: %s}
seccompProfile: {install: true}
provisioner: {enabled: true}
policies:
- name: chart-test
  spec: {images: [%s], authorities: [{key: {data: %q}}]}
  usableBy: [{namespace: %s, serviceAccounts: [bpfvol-test]}]
test:
  volumeAttributes: {image: %s, attach: "{program: count, xdp: {interface: eth0}}"}
`, version, hostsDir, strings.TrimSuffix(chartTestImage, ":v1"), c.publicKey(t), pluginNamespace, chartTestImage)
}

// helm runs helm on the node as admin.
func (c *cluster) helm(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.tryHelm(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) tryHelm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(chart.Binary(t), args...)
	home := filepath.Join(c.dir, "helm")
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	out, err := c.Output(cmd)
	if err != nil {
		err = fmt.Errorf("helm %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return out, err
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

// withoutPlugin does something while the node has no plugin, which is there again afterwards.
func (c *cluster) withoutPlugin(t *testing.T, do func()) {
	t.Helper()
	onNodesWith := func(label string) {
		c.kubectl(t, "patch", "daemonset", "-n", pluginNamespace, "bpfvol", "--patch", `{"spec":{"template":{"spec":{"nodeSelector":{"bpfvol.io/away":`+label+`}}}}}`)
	}
	plugin := c.pluginPod(t)
	onNodesWith(`"true"`)
	c.await(t, podPath(pluginNamespace, plugin), k8s.Gone)
	do()
	onNodesWith("null")
	c.awaitDriver(t, true)
}

// killPlugin kills the plugin in its container, without a warning.
func (c *cluster) killPlugin(t *testing.T) {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := c.Output(exec.Command(busybox, "sh", "-c", "kill -9 $(busybox pidof bpfvol)")); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func (c *cluster) pluginPod(t *testing.T) string {
	t.Helper()
	return c.kubectl(t, "get", "pods", "-n", pluginNamespace, "-l", "app.kubernetes.io/component=node", "-o", "jsonpath={.items[0].metadata.name}")
}

// pluginVersion asks a plugin in its container.
func (c *cluster) pluginVersion(t *testing.T, pod string) string {
	t.Helper()
	words := strings.Fields(c.exec(t, pluginNamespace, pod, "/bpfvol", "--version"))
	return words[len(words)-1]
}

// pluginProcess is the directory in /proc of the plugin on the node.
func (c *cluster) pluginProcess(t *testing.T) string {
	t.Helper()
	processes, err := filepath.Glob(c.Path("/proc/[0-9]*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range processes {
		if line, err := os.ReadFile(dir + "/cmdline"); err == nil && strings.HasPrefix(string(line), "/bpfvol\x00serve\x00") {
			return dir
		}
	}
	t.Fatal("no process /bpfvol serve on the node")
	return ""
}
