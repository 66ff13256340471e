// SPDX-License-Identifier: Apache-2.0

// Command seccomp prints the profile for pods that read maps of their volume by bpf(2), or write those in rw/, too:
// containerd's default profile for a container without capabilities, and those commands of bpf(2) that open a pinned map,
// read it and write it. The default profile refuses all of bpf(2).
//
//	seccomp reader | writer
//
// A filter sees the number of the command and not what it points to. That is enough: a map of a volume is read-only by its
// file system, but for those in rw/, so what these commands get is no more than `cat` of json/<map> shows, and no command
// here makes anything.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

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

// writing are those that change a map, beside.
var writing = []uint64{
	2,  // BPF_MAP_UPDATE_ELEM
	3,  // BPF_MAP_DELETE_ELEM
	21, // BPF_MAP_LOOKUP_AND_DELETE_ELEM
	25, // BPF_MAP_LOOKUP_AND_DELETE_BATCH
	26, // BPF_MAP_UPDATE_BATCH
	27, // BPF_MAP_DELETE_BATCH
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
	commands, err := commandsOf(os.Args[1:])
	if err != nil {
		return err
	}
	for _, command := range commands {
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

// commandsOf are those that a profile allows.
func commandsOf(args []string) ([]uint64, error) {
	switch {
	case slices.Equal(args, []string{"reader"}):
		return reading, nil
	case slices.Equal(args, []string{"writer"}):
		return slices.Concat(reading, writing), nil
	}
	return nil, errors.New("usage: seccomp reader | writer")
}
