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

// The bpf(2) calls of this file are ours because link.AttachRawLink takes no 64-bit cookie, link.AttachRawTracepoint
// none at all, and link.AttachIter no order. Layouts: union bpf_attr of include/uapi/linux/bpf.h.

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

// linkRawTracepoint makes a link of a raw tracepoint and a program. No name stands for the tracepoint that the program
// was loaded for.
func linkRawTracepoint(prog *ebpf.Program, name string, cookie uint64) (link.Link, error) {
	var text *byte
	if name != "" {
		var err error
		if text, err = unix.BytePtrFromString(name); err != nil {
			return nil, err
		}
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

// linkIter makes a link of an iterator. The order is for iterators over cgroups alone; all others ignore it where, as here,
// no map, task or cgroup is named.
func linkIter(prog *ebpf.Program, order uint32) (link.Link, error) {
	info := struct { // union bpf_iter_link_info
		order, cgroup uint32
		cgroupID      uint64
	}{order: order}
	attr := struct {
		prog, target, attachType, flags uint32
		info                            unsafe.Pointer
		size                            uint32
		_                               uint32
	}{prog: uint32(prog.FD()), attachType: uint32(ebpf.AttachTraceIter), info: unsafe.Pointer(&info), size: uint32(unsafe.Sizeof(info))}
	l, err := bpfLink(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(prog)
	return l, err
}

func bpfLink(command int, attr unsafe.Pointer, size uintptr) (link.Link, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return nil, fmt.Errorf("create link: %w", errno)
	}
	return link.NewFromFD(int(fd))
}
