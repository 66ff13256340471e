// SPDX-License-Identifier: Apache-2.0

// Package foreign_test shows that bytecode objects which nobody here wrote go the whole way: build, sign, push, publish
// by the daemon, read as a container reads. The objects are those of Debian's xdp-tools and of cilium/ebpf's examples.
package foreign_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

// xdpTools returns the path of an object of xdp-tools.
func xdpTools(t *testing.T, name string) string {
	t.Helper()
	for _, pattern := range []string{"/usr/lib/*/bpf/", "/usr/lib/bpf/", "/usr/lib64/bpf/"} {
		if paths, _ := filepath.Glob(pattern + name); len(paths) > 0 {
			return paths[0]
		}
	}
	t.Skipf("%s is not on this machine; it is in the package xdp-tools, which e2e/setup.sh installs where the release has it", name)
	return ""
}

// example returns the path of an object among cilium/ebpf's examples, which come with the module.
func example(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cilium/ebpf").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "examples", name)
}
