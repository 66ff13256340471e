// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func tracingProbes() []probe {
	perf := []capability{unix.CAP_PERFMON, unix.CAP_BPF}
	admin := []capability{unix.CAP_SYS_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON}
	return []probe{
		{name: "tracepoint", what: "hook tracepoint", caps: admin, kernel: "CONFIG_BPF_EVENTS and CONFIG_FTRACE, version 5.15 or later", try: tryTracepoint},
		{name: "rawTracepoint", what: "hook rawTracepoint", caps: perf, kernel: "CONFIG_BPF_EVENTS", try: tryRawTracepoint},
		{name: "uprobe", what: "hooks uprobe and uretprobe", caps: admin, kernel: "CONFIG_UPROBE_EVENTS, version 5.15 or later", try: tryUprobe},
		{name: "perfEvent", what: "hook perfEvent", caps: perf, kernel: "CONFIG_PERF_EVENTS and CONFIG_BPF_EVENTS, version 5.15 or later", try: tryPerfEvent},
		{name: "kprobe", what: "hooks kprobe and kretprobe", caps: admin, kernel: "CONFIG_KPROBES and CONFIG_KPROBE_EVENTS", try: tryKprobe},
		{name: "iter", what: "json/ in volumes, hook iter", caps: perf, kernel: "CONFIG_BPF_EVENTS and CONFIG_DEBUG_INFO_BTF, version 5.9 or later", try: tryIter},
	}
}

// atHook attaches a program as a volume would.
func atHook(spec *ebpf.ProgramSpec, h volume.Hook) error {
	return with(spec, func(prog *ebpf.Program) error {
		links, err := hook.Attach(prog, h)
		for _, l := range links {
			err = errors.Join(err, l.Close())
		}
		return err
	})
}

func tryTracepoint() (string, error) {
	at := &volume.Tracepoint{Group: "sched", Name: "sched_process_exec"}
	detail := at.String()
	if _, err := os.Stat("/sys/kernel/tracing/events"); err != nil {
		detail += "; tracefs is not mounted, and need not be"
	}
	return detail, atHook(returning(0, ebpf.TracePoint, 0), at)
}

func tryRawTracepoint() (string, error) {
	at := &volume.RawTracepoint{Name: "sched_process_exec"}
	return at.String(), atHook(returning(0, ebpf.RawTracepoint, 0), at)
}

// tryUprobe probes this process's own first instruction, which it has behind it.
func tryUprobe() (string, error) {
	const self = "/proc/self/exe"
	offset, err := entry(self)
	if err != nil {
		return "", err
	}
	return "in this binary", atHook(returning(0, ebpf.Kprobe, 0), &volume.Uprobe{Path: self, Offset: offset, PID: os.Getpid()})
}

// entry returns where in a binary's file its first instruction is.
func entry(path string) (uint64, error) {
	f, err := elf.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 && f.Entry >= p.Vaddr && f.Entry-p.Vaddr < p.Filesz {
			return f.Entry - p.Vaddr + p.Off, nil
		}
	}
	return 0, fmt.Errorf("%s: no code at its entry point", path)
}

func tryPerfEvent() (string, error) {
	return "cpu-clock on every CPU", atHook(returning(0, ebpf.PerfEvent, 0), &volume.PerfEvent{Event: "cpu-clock", Frequency: 1, CPU: -1})
}

func tryKprobe() (string, error) {
	if _, err := os.Stat("/sys/bus/event_source/devices/kprobe"); err != nil {
		return "", err
	}
	at := &volume.Kprobe{Function: "vprintk"}
	return at.String(), atHook(returning(0, ebpf.Kprobe, 0), at)
}

// tryIter reads a map through an iterator, as `cat json/<map>` does.
func tryIter() (string, error) {
	m, err := newMap(ebpf.Array)
	if err != nil {
		return "", err
	}
	defer m.Close()
	spec := returning(0, ebpf.Tracing, ebpf.AttachTraceIter)
	spec.AttachTo = "bpf_map_elem"
	err = with(spec, func(prog *ebpf.Program) error {
		it, err := link.AttachIter(link.IterOptions{Program: prog, Map: m})
		if err != nil {
			return err
		}
		defer it.Close()
		file, err := it.Open()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, file)
		return errors.Join(err, file.Close())
	})
	return "bpf_map_elem", err
}
