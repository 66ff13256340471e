// SPDX-License-Identifier: Apache-2.0

package bpftest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// BPFFS mounts a fresh bpffs and returns its path. It is unmounted, with all pins, when the test ends.
func BPFFS(t testing.TB) string {
	t.Helper()
	Root(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		err := unix.Unmount(dir, 0)
		if err == nil {
			return
		}
		t.Errorf("unmount %s: %v", dir, err)
		// Take it out of the way of the directory's removal.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("detach %s: %v", dir, err)
		}
	})
	return dir
}
