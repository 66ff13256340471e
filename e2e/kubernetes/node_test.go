// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/k8s"
)

func TestNodeLeavesNothing(t *testing.T) {
	before := onMachine(t)
	n, err := k8s.StartNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := n.Dir()
	if got := n.Kubectl(t, "get", "nodes", "-o", "name"); got != "node/"+k8s.NodeName+"\n" {
		t.Errorf("the cluster's nodes: %q", got)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if left := since(onMachine(t), before); len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, "\n"))
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("left behind: %s", dir)
	}
}

func TestNodesAreApart(t *testing.T) {
	a, err := k8s.StartNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := k8s.StartNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.Kubectl(t, "create", "namespace", "only-in-a")
	if out, err := b.TryKubectl(t, "", "get", "namespace", "only-in-a"); err == nil {
		t.Errorf("the other cluster has %s", out)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	b.Kubectl(t, "get", "nodes") // lives on
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// victimEnv makes TestNodeDiesWithItsTest start a node, say so and wait to be killed.
const victimEnv = "BPFVOL_E2E_VICTIM"

func TestNodeDiesWithItsTest(t *testing.T) {
	if os.Getenv(victimEnv) != "" {
		n, err := k8s.StartNode(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(n.Dir())
		select {}
	}
	before := onMachine(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNodeDiesWithItsTest$")
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	dir := strings.TrimSpace(line)
	if err != nil || !filepath.IsAbs(dir) {
		t.Errorf("the other process says %q, %v", line, err)
	}
	cmd.Process.Kill() //nolint:errcheck // Wait says how it ended
	cmd.Wait()         //nolint:errcheck // it was killed
	soon(t, "its processes are gone", func() error {
		for _, what := range since(onMachine(t), before) {
			if !strings.HasPrefix(what, "cgroup ") {
				return fmt.Errorf("left behind: %s", what)
			}
		}
		return nil
	})
	// Files and cgroups are the next node's to remove.
	n, err := k8s.StartNode(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if left := since(onMachine(t), before); len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, "\n"))
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("left behind: %s", dir)
	}
}

// onMachine lists what a node could leave on the machine: processes of its programs, mounts, links, cgroups.
func onMachine(t *testing.T) []string {
	t.Helper()
	var all []string
	processes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if exe, err := os.Readlink(p); err == nil && strings.Contains(exe, "/bpfvol/kubernetes/") {
			all = append(all, "process "+filepath.Base(filepath.Dir(p))+" "+exe)
		}
	}
	for what, pattern := range map[string]string{"link": "/sys/class/net/*", "cgroup": "/sys/fs/cgroup/*/bpfvol-e2e-*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			all = append(all, what+" "+f)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		all = append(all, "mount "+line)
	}
	return all
}

// since lists what is in now and not in before.
func since(now, before []string) []string {
	return slices.DeleteFunc(now, func(s string) bool { return slices.Contains(before, s) })
}
