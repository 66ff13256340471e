// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The two bpf(2) calls of this file are ours because link.AttachRawLink takes no 64-bit cookie and
// link.AttachRawTracepoint none at all. Layouts: union bpf_attr of include/uapi/linux/bpf.h.

// linkPerfEvent makes a link of a perf event and a program. The link holds the event: the caller closes its own
// descriptor.
func linkPerfEvent(prog *ebpf.Program, event int, cookie uint64) (link.Link, error) {
	attr := struct {
		prog, target, attachType, flags uint32
		cookie                          uint64
	}{prog: uint32(prog.FD()), target: uint32(event), attachType: uint32(ebpf.AttachPerfEvent), cookie: cookie}
	l, err := bpfLink(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(prog)
	return l, err
}

// linkRawTracepoint makes a link of a raw tracepoint and a program.
func linkRawTracepoint(prog *ebpf.Program, name string, cookie uint64) (link.Link, error) {
	text, err := unix.BytePtrFromString(name)
	if err != nil {
		return nil, err
	}
	attr := struct {
		name    unsafe.Pointer // little and big endian alike: the machines of this module have 64-bit pointers
		prog, _ uint32
		cookie  uint64
	}{name: unsafe.Pointer(text), prog: uint32(prog.FD()), cookie: cookie}
	l, err := bpfLink(unix.BPF_RAW_TRACEPOINT_OPEN, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(prog)
	runtime.KeepAlive(text)
	if cookie != 0 && errors.Is(err, unix.E2BIG) {
		return nil, &worded{"cookie of a raw tracepoint: needs Linux 6.10; leave it out", []error{ebpf.ErrNotSupported}}
	}
	return l, err
}

func bpfLink(command int, attr unsafe.Pointer, size uintptr) (link.Link, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return nil, fmt.Errorf("create link: %w", errno)
	}
	return link.NewFromFD(int(fd))
}
