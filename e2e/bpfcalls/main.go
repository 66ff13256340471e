// SPDX-License-Identifier: Apache-2.0

// Command bpfcalls prints which commands of bpf(2) reach the kernel, by their numbers: those that are not refused with EPERM.
// It gives each an empty argument. To a process without capabilities the kernel itself refuses some that way, such as
// loading programs; all others it answers with another error. So what a seccomp filter lets through is seen exactly.
package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

func main() {
	const beyondTheLast = 64 // of enum bpf_cmd, which had 39 in Linux 6.18
	for command := range uintptr(beyondTheLast) {
		if _, _, err := unix.Syscall(unix.SYS_BPF, command, 0, 0); !errors.Is(err, unix.EPERM) {
			fmt.Println(command)
		}
	}
}
