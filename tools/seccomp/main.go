// SPDX-License-Identifier: Apache-2.0

// Command seccomp prints the profile for pods that read maps of their volume by bpf(2): containerd's default profile for a
// container without capabilities, and those commands of bpf(2) that open a pinned map and read it. The default profile
// refuses all of bpf(2).
//
// A filter sees the number of the command and not what it points to. That is enough: a map of a volume is read-only by its
// file system, so what these commands get is no more than `cat` of json/<map> shows, and no command here makes anything.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// reading are the commands of bpf(2) that are allowed, by enum bpf_cmd of linux/bpf.h.
var reading = []uint64{
	1,  // BPF_MAP_LOOKUP_ELEM
	4,  // BPF_MAP_GET_NEXT_KEY
	7,  // BPF_OBJ_GET
	15, // BPF_OBJ_GET_INFO_BY_FD
	24, // BPF_MAP_LOOKUP_BATCH
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "seccomp:", err)
		os.Exit(1)
	}
}

func run() error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("containerd's profile is that of the machine it is made on, and arm64's part is added here; run this on amd64, not %s", runtime.GOARCH)
	}
	profile := seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	// What containerd has for arm64 alone (contrib/seccomp/seccomp_default.go). A filter passes over names that an
	// architecture has not, so one profile is for both.
	profile.Architectures = append(profile.Architectures, specs.ArchARM, specs.ArchAARCH64)
	profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{
		Names:  []string{"arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"},
		Action: specs.ActAllow,
	})
	for _, command := range reading {
		profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{
			Names:  []string{"bpf"},
			Action: specs.ActAllow,
			Args:   []specs.LinuxSeccompArg{{Index: 0, Value: command, Op: specs.OpEqualTo}},
		})
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", " ")
	return e.Encode(profile)
}
