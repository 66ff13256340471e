// SPDX-License-Identifier: Apache-2.0

package bpftest

import (
	"os/exec"
	"syscall"
	"testing"
)

// Process starts a process that does nothing until the test ends, in fresh namespaces: syscall.CLONE_NEWNS and so on; 0 is
// those of the test.
func Process(t testing.TB, namespaces uintptr) (pid int) {
	t.Helper()
	return process(t, namespaces, func(start func() error) error { return start() })
}

// Process starts one in the network namespace, as a pod would: one that only a descriptor holds cannot be found again.
func (ns *NetNS) Process(t testing.TB) (pid int) {
	t.Helper()
	return process(t, 0, ns.Do)
}

func process(t testing.TB, namespaces uintptr, where func(func() error) error) (pid int) {
	t.Helper()
	Root(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: namespaces}
	if err := where(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}
