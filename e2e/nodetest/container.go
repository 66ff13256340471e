// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// start makes of the daemon's process what a runtime would make of a container's, and starts it.
func (o Options) start(daemon *exec.Cmd) error {
	daemon.SysProcAttr = &syscall.SysProcAttr{}
	if o.Container {
		daemon.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWCGROUP // all mounts become private
	}
	if o.Without != "" {
		without := Action(append([]string{"without", o.Without, daemon.Path}, daemon.Args[1:]...)...)
		daemon.Path, daemon.Args = without.Path, without.Args
	}
	if o.Start != nil {
		return o.Start(daemon)
	}
	return daemon.Start()
}

// onNode is a process on the node, by its directory in /proc.
func onNode(t testing.TB, ns *bpftest.NetNS) string {
	t.Helper()
	start := func(t testing.TB) int { return bpftest.Process(t, 0) }
	if ns != nil {
		start = ns.Process
	}
	return fmt.Sprintf("/proc/%d", start(t))
}

// mountBPFFS does what systemd does on a node: the bpffs is there before the container, which has it by hostPath.
func (n *Node) mountBPFFS(t testing.TB) {
	t.Helper()
	if err := os.Mkdir(n.BPFFSDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", n.BPFFSDir(), "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
}

// without runs a command that can have no capability of this name.
func without(name string, command []string) error {
	value, err := cap.FromName(name)
	if err != nil {
		return err
	}
	if err := cap.DropBound(value); err != nil {
		return err
	}
	return syscall.Exec(command[0], command, os.Environ())
}
