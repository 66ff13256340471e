// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// returning is a program that returns a number and does nothing else.
func returning(verdict int32, t ebpf.ProgramType, at ebpf.AttachType) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{
		Name: "bpfvol_doctor", Type: t, AttachType: at, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	}
}

// with loads a program for the time of f.
func with(spec *ebpf.ProgramSpec, f func(*ebpf.Program) error) error {
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		return err
	}
	defer prog.Close()
	return f(prog)
}

// loads is an f for with: loading is all.
func loads(*ebpf.Program) error { return nil }

func tryLoad() (string, error) {
	return "a program loads", with(returning(0, ebpf.SocketFilter, 0), loads)
}

// newMap makes a small map. The caller closes it.
func newMap(t ebpf.MapType) (*ebpf.Map, error) {
	return ebpf.NewMap(&ebpf.MapSpec{Name: "bpfvol_doctor", Type: t, KeySize: 4, ValueSize: 8, MaxEntries: 1})
}

// tryMemory makes a map that only fits where the kernel charges maps to the cgroup instead of RLIMIT_MEMLOCK.
func tryMemory() (string, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return "", err
	}
	if limit.Cur == math.MaxUint64 {
		return "RLIMIT_MEMLOCK is unlimited", nil
	}
	kib := limit.Cur >> 10
	const most = 64 << 10 // KiB; to try more would disturb the node
	if kib > most {
		return fmt.Sprintf("RLIMIT_MEMLOCK is %d KiB", kib), nil
	}
	const entry = 4 << 10
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "bpfvol_doctor", Type: ebpf.Array, KeySize: 4, ValueSize: entry, MaxEntries: uint32(limit.Cur/entry) + 1})
	if errors.Is(err, unix.EPERM) && with(returning(0, ebpf.SocketFilter, 0), loads) == nil {
		return "", &problem{fmt.Sprintf("maps count against RLIMIT_MEMLOCK, which is %d KiB", kib),
			"raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity in a unit), or a kernel of version 5.11 or later"}
	} else if err != nil {
		return "", err
	}
	return fmt.Sprintf("maps count against the cgroup's memory, not against RLIMIT_MEMLOCK (%d KiB)", kib), m.Close()
}

func tryBTF() (string, error) {
	if _, err := btf.LoadKernelSpec(); err != nil {
		return "", err
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return "from the kernel's image on disk", nil
	}
	return "/sys/kernel/btf/vmlinux", nil
}

func tryStats() (string, error) {
	enabled, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return "", err
	}
	detail := "can be turned on while someone looks; off by default"
	if always, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled"); err == nil && strings.TrimSpace(string(always)) != "0" {
		detail = "always on (kernel.bpf_stats_enabled), which costs each program two readings of the clock"
	}
	return detail, enabled.Close()
}
