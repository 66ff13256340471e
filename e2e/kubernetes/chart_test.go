// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/chart"
)

// asChart installs deploy/helm/bpfvol as docs/operations.md says, with values beside those that say where this cluster's images
// are. helm itself waits until the plugin's pod is ready.
func asChart(values string) deployment {
	return func(t *testing.T, c *cluster) func() {
		t.Helper()
		c.helm(t, "install", "bpfvol", chart.Dir(), "--namespace", pluginNamespace, "--create-namespace",
			"-f", c.writeValues(t, "cluster", c.clusterValues(t)), "-f", c.writeValues(t, "test", values), "--wait", "--timeout", patience.String())
		return func() {
			c.helm(t, "uninstall", "bpfvol", "--namespace", pluginNamespace, "--wait", "--timeout", patience.String())
			c.awaitDriver(t, false)
			c.kubectl(t, "delete", "crd/bytecodepolicies.bpfvol.io", "namespace/"+pluginNamespace, "--timeout="+patience.String())
		}
	}
}

// hostsDir is where containerd's users write how registries are reached. Here every image of ghcr.io is in the node's registry.
const hostsDir = "/etc/containerd/certs.d"

// clusterValues are for a cluster whose only registry is Registry.
func (c *cluster) clusterValues(t *testing.T) string {
	t.Helper()
	if err := os.MkdirAll(c.Path(hostsDir+"/ghcr.io"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.Path(hostsDir+"/ghcr.io/hosts.toml"), []byte(`server = "http://`+c.Registry()+`"`), 0o644); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("image: {tag: %q}\nregistries: {hostsDir: %s}\n", version, hostsDir)
}

func (c *cluster) writeValues(t *testing.T, name, values string) string {
	t.Helper()
	file := filepath.Join(c.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
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

// What the plugin may do on the node is what the chart says, in the kernel's words.
func TestChartsPluginHasTheCapabilitiesThatItLists(t *testing.T) {
	c := start(t)
	c.deploy(t, asChart(""))
	process := c.pluginProcess(t)
	status, err := os.ReadFile(process + "/status")
	if err != nil {
		t.Fatal(err)
	}
	const listed = "00000004002c1001" // chown, net_admin, sys_chroot, sys_ptrace, sys_admin, syslog
	for _, want := range []string{"CapPrm:\t" + listed, "CapEff:\t" + listed, "CapBnd:\t" + listed, "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), want+"\n") {
			t.Errorf("no %q in its status:\n%s", want, status)
		}
	}
	for _, ns := range []string{"net", "mnt"} {
		its, err := os.Readlink(process + "/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := os.Readlink(c.Path("/proc/1/ns/" + ns))
		if err != nil {
			t.Fatal(err)
		}
		if its == nodes {
			t.Errorf("it lives in the node's %s namespace", ns)
		}
	}
	mounts, err := os.ReadFile(process + "/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^\S+ / \S+ ro,`).Match(mounts) {
		t.Errorf("its root is not read-only:\n%s", mounts)
	}
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

// The test of the chart is a pod with a volume, which shows what the volume has.
func TestHelmTestRunsAVolume(t *testing.T) {
	c := start(t)
	c.deploy(t, asChart(c.policyValues(t)+`
test:
  volumeAttributes: {image: ghcr.io/acme/count:v1, attach: "{program: count, xdp: {interface: eth0}}"}
`))
	c.nothingLeft(t)
	out := c.helm(t, "test", "bpfvol", "--namespace", pluginNamespace, "--logs", "--timeout", patience.String())
	if !strings.Contains(out, `"image"`) || !strings.Contains(out, "/bpf/json/flows:") {
		t.Errorf("no volume in the log of the test:\n%s", out)
	}
}

// policyValues let the service account of the chart's test use what the tests' key signed.
func (c *cluster) policyValues(t *testing.T) string {
	t.Helper()
	key, err := os.ReadFile(c.keyPrefix() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`
policies:
- name: acme
  spec: {images: ["ghcr.io/acme/*"], authorities: [{key: {data: %q}}]}
  usableBy: [{namespace: %s, serviceAccounts: [bpfvol-test]}]
`, key, pluginNamespace)
}

// Without the driver nothing could end a pod that has a volume of it, so it is not taken away.
func TestUninstallIsRefusedWhilePodsHaveVolumes(t *testing.T) {
	c := start(t)
	c.deploy(t, asChart(""))
	c.nothingLeft(t)
	c.counter(t)
	if out, err := c.tryHelm(t, "uninstall", "bpfvol", "--namespace", pluginNamespace); err == nil {
		t.Errorf("uninstalled beside a pod with a volume: %s", out)
	}
	log := c.kubectl(t, "logs", "-n", pluginNamespace, "job/bpfvol-uninstall")
	for _, want := range []string{"demo       counter  node1  bpf", "1 pods have volumes of csi.bpfvol.io", "delete them first"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log of the job:\n%s", want, log)
		}
	}
	c.kubectl(t, "delete", "job", "-n", pluginNamespace, "bpfvol-uninstall", "--timeout="+patience.String())
	// It goes on as if nothing had been asked.
	c.send(t, 3)
	if got := c.packets(t, "demo", "counter"); got != 3 {
		t.Errorf("the pod reads %d packets, want 3", got)
	}
	c.deletePod(t, "demo", "counter")
}

// An upgrade is what docs/operations.md says: the definitions, then helm. The pod's programs count on, and what runs is new.
func TestUpgradeByHelmLeavesPodsAlone(t *testing.T) {
	c := start(t)
	c.deploy(t, asChart(""))
	c.nothingLeft(t)
	c.counter(t)
	c.send(t, 5)
	if _, err := c.TryKubectl(t, c.helm(t, "show", "crds", chart.Dir()), "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	c.helm(t, "upgrade", "bpfvol", chart.Dir(), "--namespace", pluginNamespace, "--reuse-values", "--set", "image.tag="+nextVersion, "--wait", "--timeout", patience.String())
	if got := c.exec(t, pluginNamespace, "daemonset/bpfvol", "/bpfvol", "--version"); !strings.Contains(got, nextVersion) {
		t.Errorf("after the upgrade runs %s, want %s", got, nextVersion)
	}
	c.send(t, 4)
	if got := c.packets(t, "demo", "counter"); got != 5+4 {
		t.Errorf("the pod reads %d packets, want 9", got)
	}
	c.deletePod(t, "demo", "counter")
}
