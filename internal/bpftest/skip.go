// SPDX-License-Identifier: Apache-2.0

package bpftest

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		t.Skipf("runs as uid %d, needs root", uid)
	}
}

// SkipOnOldKernel skips the test on kernels before version, which brought feature. On a newer kernel that lacks the
// feature the test runs, and fails: the version is then wrong, or the kernel is.
func SkipOnOldKernel(t testing.TB, version, feature string) {
	t.Helper()
	release := kernelRelease(t)
	var have, want [2]int
	if _, err := fmt.Sscanf(release, "%d.%d", &have[0], &have[1]); err != nil {
		t.Fatalf("kernel release %q: %v", release, err)
	}
	if _, err := fmt.Sscanf(version, "%d.%d", &want[0], &want[1]); err != nil {
		t.Fatalf("version %q: %v", version, err)
	}
	if have[0] < want[0] || have[0] == want[0] && have[1] < want[1] {
		t.Skipf("kernel is %s, %s came with %s", release, feature, version)
	}
}

// notSupported is ENOTSUPP, which the kernel returns though user space has no name for it (include/linux/errno.h).
const notSupported = unix.Errno(524)

// SkipIfNotSupported skips the test if err is the kernel's answer that it lacks a feature.
func SkipIfNotSupported(t testing.TB, err error) {
	t.Helper()
	for _, answer := range []error{ebpf.ErrNotSupported, unix.EOPNOTSUPP, unix.ENOSYS, notSupported} {
		if errors.Is(err, answer) {
			t.Skipf("kernel %s: %v", kernelRelease(t), err)
		}
	}
}

// SkipIfForbidden skips the test if err says that the kernel does not let root do what it could do: some are built so.
func SkipIfForbidden(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, unix.EPERM) {
		t.Skipf("kernel %s: %v", kernelRelease(t), err)
	}
}

func kernelRelease(t testing.TB) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}
