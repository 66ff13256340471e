// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/host"
)

// A directory that the container has and the node has not would take the records and pins with it.
func TestDirectoriesMustBeTheNodesOwn(t *testing.T) {
	node := host.Process(fmt.Sprintf("/proc/%d", bpftest.Process(t, syscall.CLONE_NEWNS)))
	shared, own := t.TempDir(), t.TempDir()
	if err := node.Do(func() error { return unix.Mount("node", own, "tmpfs", 0, "") }); err != nil {
		t.Fatal(err)
	}
	if err := sharedWithHost(node, shared); err != nil {
		t.Errorf("a directory that both have: %v", err)
	}
	want := "not the node's directory; mount that at the same path"
	for _, dir := range []string{own, own + "/none"} {
		if err := sharedWithHost(node, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
	}
}
