// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// probeSource is where the kernel describes its source of events for probes of its functions.
const probeSource = "/sys/bus/event_source/devices/kprobe"

// attachKprobe probes a function of the kernel, on every CPU. Not link.Kprobe: that writes to tracefs where it finds no
// better way, and what is written there outlives a process that is killed.
func attachKprobe(prog *ebpf.Program, h *volume.Kprobe) (link.Link, error) {
	if err := wantType(prog, ebpf.Kprobe); err != nil {
		return nil, err
	}
	kind, returns, err := readProbeSource()
	if err != nil {
		return nil, err
	}
	attr := unix.PerfEventAttr{Type: kind, Ext2: h.Offset}
	if h.Return {
		attr.Config = returns
	}
	event, err := openKprobe(&attr, h.Function)
	if errors.Is(err, unix.ENOENT) && strings.HasPrefix(h.Function, "sys_") {
		event, err = openKprobe(&attr, syscallPrefix[runtime.GOARCH]+h.Function)
	}
	if err != nil {
		return nil, explainKprobe(err, h)
	}
	defer unix.Close(event)
	return linkPerfEvent(prog, event, h.Cookie)
}

// syscallPrefix is what the kernel puts before the names of functions that are system calls
// (arch/*/include/asm/syscall_wrapper.h).
var syscallPrefix = map[string]string{"amd64": "__x64_", "arm64": "__arm64_", "riscv64": "__riscv_", "s390x": "__s390x_"}

// readProbeSource returns the type of perf events that are probes, and the bit of their configuration that asks for the
// function's return.
func readProbeSource() (kind uint32, returns uint64, err error) {
	if _, err := os.Stat(probeSource); errors.Is(err, os.ErrNotExist) {
		return 0, 0, &worded{"this kernel cannot probe its functions; use a tracepoint, or a kernel with CONFIG_KPROBE_EVENTS", []error{ebpf.ErrNotSupported}}
	}
	var bit uint
	if err := errors.Join(scanFile(probeSource+"/type", "%d", &kind), scanFile(probeSource+"/format/retprobe", "config:%d", &bit)); err != nil {
		return 0, 0, fmt.Errorf("source of kernel probes: %w", err)
	}
	return kind, 1 << bit, nil
}

func scanFile(path, format string, to any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, err = fmt.Sscanf(string(text), format, to)
	return err
}

// openKprobe makes a probe. The event is opened for one CPU, the probe fires on each.
func openKprobe(attr *unix.PerfEventAttr, function string) (int, error) {
	if offset := attr.Ext2; offset > 0 {
		if size := functionSize(function); size > 0 && offset >= size {
			return -1, unfit("offset %d is outside its %d bytes; choose a smaller one", offset, size)
		}
	}
	name, err := unix.BytePtrFromString(function)
	if err != nil {
		return -1, err
	}
	var pinner runtime.Pinner // the kernel gets the address as a number
	pinner.Pin(name)
	defer pinner.Unpin()
	attr.Ext1 = uint64(uintptr(unsafe.Pointer(name)))
	return perfEventOpen(attr, everyProcess, 0)
}

// explainKprobe puts the kernel's answer in words (kernel/trace/trace_kprobe.c, kernel/kprobes.c).
func explainKprobe(err error, h *volume.Kprobe) error {
	function := "kernel function " + quote(h.Function)
	switch {
	case errors.Is(err, unix.ENOENT):
		return missingFunction(h.Function)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return unfit("%s: the kernel has several of this name; probe another", function)
	case errors.Is(err, unix.EILSEQ):
		return unfit("%s: offset %d is inside an instruction; choose where one begins", function, h.Offset)
	case errors.Is(err, unix.EINVAL):
		if h.Offset > 0 {
			return unfit("%s: the kernel allows no probe at offset %d; choose another", function, h.Offset)
		}
		return unfit("%s: the kernel allows no probe of it; probe another", function)
	}
	return fmt.Errorf("%s: %w", function, err)
}
