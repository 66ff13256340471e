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

// The test of the chart is a pod with a volume, which shows what the volume has.
func TestHelmTestRunsAVolume(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	out := c.helm(t, "test", "bpfvol", "--namespace", pluginNamespace, "--logs", "--timeout", patience.String())
	if !strings.Contains(out, `"image"`) || !strings.Contains(out, "/bpf/json/flows:") {
		t.Errorf("no volume in the log of the test:\n%s", out)
	}
}
