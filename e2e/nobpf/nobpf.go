// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package nobpf runs a command as a container with the RuntimeDefault seccomp profile would see the world: bpf(2)
// answers EPERM. (containerd's profile allows it only to CAP_BPF and CAP_SYS_ADMIN: contrib/seccomp/seccomp_default.go.)
package nobpf

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Arg as first argument makes the calling binary become the command that follows, under the filter. main must pass
// its arguments to Main before anything else.
const Arg = "nobpf-exec"

// Nobody is the user and group that no file belongs to.
const Nobody = 65534

// Command prepares args to run as uid and gid 65534, so without any capability, and without bpf(2).
func Command(args ...string) *exec.Cmd {
	return AsNobody(append([]string{"/proc/self/exe", Arg}, args...)...)
}

// AsNobody prepares args to run as uid and gid 65534 with bpf(2) left alone.
func AsNobody(args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: Nobody, Gid: Nobody}}
	return cmd
}

// Main returns when args is not a call made by Command.
func Main(args []string) {
	if len(args) < 3 || args[1] != Arg {
		return
	}
	err := refuseBPF()
	if err == nil {
		var path string
		if path, err = exec.LookPath(args[2]); err == nil {
			err = unix.Exec(path, args[2:], os.Environ())
		}
	}
	fmt.Fprintln(os.Stderr, "nobpf:", err)
	os.Exit(127)
}

// auditArch names the only system call table that the filter knows; see <linux/audit.h>.
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]

func refuseBPF() error {
	const nr, arch = 0, 4 // offsets in struct seccomp_data
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arch},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: auditArch, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_BPF, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // the filter is the thread's, and so must be the exec
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
