// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// What the plugin may do on the node is what the chart says, in the kernel's words.
func TestChartsPluginHasTheCapabilitiesThatItLists(t *testing.T) {
	c := start(t)
	process := c.pluginProcess(t)
	c.wantStatus(t, process, "00000004002c1001", "NoNewPrivs:\t1", "Seccomp:\t2") // chown, net_admin, sys_chroot, sys_ptrace, sys_admin, syslog
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

// Where the chart has to make the plugin's pod privileged, the plugin gives up at its start what it does not need, and a pod
// reads its volume, which is mounted by propagation then.
func TestPrivilegedPluginKeepsOnlyWhatItNeeds(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.upgrade(t, "node.privileged=true")
	t.Cleanup(func() { c.rollback(t) })
	c.wantStatus(t, c.pluginProcess(t), "0000000400281001") // the same, less sys_chroot
	c.counter(t)
	c.send(t, 5)
	if got := c.packets(t, "demo", "counter"); got != 5 {
		t.Errorf("the pod reads %d packets, want 5", got)
	}
}

// wantStatus compares /proc/PID/status of the plugin with the capabilities that it should have, and with other lines.
func (c *cluster) wantStatus(t *testing.T, process, capabilities string, lines ...string) {
	t.Helper()
	status, err := os.ReadFile(process + "/status")
	if err != nil {
		t.Fatal(err)
	}
	lines = append(lines, "CapPrm:\t"+capabilities, "CapEff:\t"+capabilities, "CapBnd:\t"+capabilities, "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000")
	for _, want := range lines {
		if !strings.Contains(string(status), want+"\n") {
			t.Errorf("no %q in its status:\n%s", want, status)
		}
	}
}

// The test of the chart is a pod with a volume, which shows what the volume has.
func TestHelmTestRunsAVolume(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	out := c.helm(t, "test", "bpfvol", "--namespace", pluginNamespace, "--logs", "--timeout", patience.String())
	if !strings.Contains(out, `"image"`) || !strings.Contains(out, "/bpf/json/flows:") {
		t.Errorf("no volume in the log of the test:\n%s", out)
	}
}
