// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// known are the system calls that can change something. Each says of a call what it changes, in words that are the same in
// every run; "" if this one changes nothing.
var known = map[string]func(call) string{
	"bpf": bpfCommand,

	"openat":    func(c call) string { return c.path(c.args[0], c.args[1]) },
	"openat2":   openat2,
	"write":     written,
	"writev":    written,
	"pwrite64":  written,
	"pwritev":   written,
	"ftruncate": onFile,
	"fallocate": onFile,
	"fsync":     onFile,
	"fdatasync": onFile,
	"flock":     onFile,
	"fchown":    onFile,
	"fchmod":    onFile,

	"copy_file_range": func(c call) string { return c.file(c.args[2]) },
	"sendfile":        func(c call) string { return path(c.file(c.args[0])) },
	"splice":          func(c call) string { return path(c.file(c.args[2])) },

	"mkdirat":   made,
	"mknodat":   atPath,
	"fchownat":  atPath,
	"fchmodat":  atPath,
	"fchmodat2": atPath,
	"utimensat": atPath,
	"unlinkat":  removed,
	"renameat":  fromTo,
	"renameat2": fromTo,
	"linkat":    fromTo,
	"symlinkat": func(c call) string { return c.path(c.args[1], c.args[2]) },

	"mount":         func(c call) string { return c.text(c.args[2]) + " on " + c.path(cwd, c.args[1]) },
	"umount2":       func(c call) string { return c.path(cwd, c.args[0]) },
	"fsopen":        func(c call) string { return c.text(c.args[0]) },
	"fsconfig":      fsconfig,
	"fsmount":       func(call) string { return "a file system" },
	"fspick":        atPath,
	"open_tree":     atPath,
	"mount_setattr": atPath,
	"move_mount":    func(c call) string { return c.path(c.args[0], c.args[1]) + " to " + c.path(c.args[2], c.args[3]) },

	"perf_event_open": func(c call) string { return fmt.Sprintf("of type %d", c.word(c.args[0])) },
	"ioctl":           ioctl,
	"setns":           func(c call) string { return fmt.Sprintf("%#x", c.args[1]) },
	"unshare":         func(c call) string { return fmt.Sprintf("%#x", c.args[0]) },

	"bind":   bind,
	"sendto": netlink,
}

// cwd is AT_FDCWD as an argument, for calls that have no directory.
const cwd = uint64(1<<32 + unix.AT_FDCWD)

func onFile(c call) string { return c.file(c.args[0]) }

func atPath(c call) string { return c.path(c.args[0], c.args[1]) }

func fromTo(c call) string {
	return c.path(c.args[0], c.args[1]) + " to " + c.path(c.args[2], c.args[3])
}

// made leaves out a directory that is there: the kernel says so and does nothing.
func made(c call) string {
	if _, err := os.Lstat(c.reach(c.args[0], c.args[1])); err == nil {
		return ""
	}
	return atPath(c)
}

// removed leaves out what cannot be removed because it is not there, is a directory or is none, or is not empty.
func removed(c call) string {
	path := c.reach(c.args[0], c.args[1])
	info, err := os.Lstat(path)
	if err != nil || info.IsDir() != (c.args[2]&unix.AT_REMOVEDIR != 0) {
		return ""
	}
	if info.IsDir() {
		if entries, err := os.ReadDir(path); err != nil || len(entries) > 0 {
			return ""
		}
	}
	return atPath(c)
}

// path leaves out what is no file: sockets, pipes and what is only a number.
func path(file string) string {
	if strings.HasPrefix(file, "/") {
		return file
	}
	return ""
}

func written(c call) string { return path(c.file(c.args[0])) }

func openat2(c call) string {
	if c.long(c.args[2])&writing == 0 {
		return ""
	}
	return c.path(c.args[0], c.args[1])
}

// fsconfig names a file system's option, or what is to be done: FSCONFIG_CMD_CREATE and _RECONFIGURE have no key.
func fsconfig(c call) string {
	switch c.args[1] {
	case unix.FSCONFIG_CMD_CREATE:
		return "create"
	case unix.FSCONFIG_CMD_RECONFIGURE:
		return "reconfigure"
	}
	return "option " + c.text(c.args[2])
}

// ioctl knows those of perf events. Others of which the request is known to read alone are left out.
func ioctl(c call) string {
	names := map[uint64]string{
		unix.PERF_EVENT_IOC_ENABLE: "PERF_EVENT_IOC_ENABLE", unix.PERF_EVENT_IOC_DISABLE: "PERF_EVENT_IOC_DISABLE",
		unix.PERF_EVENT_IOC_SET_BPF: "PERF_EVENT_IOC_SET_BPF", unix.TCGETS: "", unix.TIOCGWINSZ: "",
	}
	if name, ok := names[c.args[1]]; ok {
		return name
	}
	return fmt.Sprintf("%#x", c.args[1])
}

// bind leaves something where the address is a path. Ports go with the process.
func bind(c call) string {
	address := c.read(c.args[1], int(c.args[2]))
	if len(address) < 3 || binary.NativeEndian.Uint16(address) != unix.AF_UNIX {
		return ""
	}
	return unix.ByteSliceToString(address[2:])
}

// netlink names what is asked of the kernel. Of each kind of object there are NEW, DEL, GET and SET, in this order.
func netlink(c call) string {
	if c.args[4] == 0 || uint16(c.word(c.args[4])) != unix.AF_NETLINK {
		return ""
	}
	kind := uint16(c.word(c.args[1] + 4))
	const get = 2
	if kind%4 == get {
		return ""
	}
	names := map[uint16]string{
		unix.RTM_NEWLINK: "RTM_NEWLINK", unix.RTM_DELLINK: "RTM_DELLINK", unix.RTM_SETLINK: "RTM_SETLINK", unix.RTM_NEWQDISC: "RTM_NEWQDISC",
		unix.RTM_DELQDISC: "RTM_DELQDISC", unix.RTM_NEWTFILTER: "RTM_NEWTFILTER", unix.RTM_DELTFILTER: "RTM_DELTFILTER",
	}
	if name, ok := names[kind]; ok {
		return name
	}
	return fmt.Sprint("message ", kind)
}

// bpfTokenCreate is BPF_TOKEN_CREATE, which x/sys/unix does not have (linux/bpf.h, Linux 6.9).
const bpfTokenCreate = 36

// bpfCommand names a command of bpf(2) that changes something, and what it is about, by the union bpf_attr of linux/bpf.h.
func bpfCommand(c call) string {
	cmd, attr := c.args[0], c.args[1]
	name := func(offset uint64) string { return unix.ByteSliceToString(c.read(attr+offset, unix.BPF_OBJ_NAME_LEN)) }
	join := func(words ...any) string { return strings.TrimSpace(fmt.Sprintln(words...)) }
	switch cmd {
	case unix.BPF_MAP_CREATE:
		return join("MAP_CREATE", ebpf.MapType(c.word(attr)), name(28))
	case unix.BPF_PROG_LOAD:
		return join("PROG_LOAD", ebpf.ProgramType(c.word(attr)), name(48))
	case unix.BPF_OBJ_PIN:
		return join("OBJ_PIN", c.path(cwd, c.long(attr)))
	case unix.BPF_LINK_CREATE:
		return join("LINK_CREATE", ebpf.AttachType(c.word(attr+8)))
	}
	names := map[uint64]string{
		unix.BPF_MAP_UPDATE_ELEM: "MAP_UPDATE_ELEM", unix.BPF_MAP_DELETE_ELEM: "MAP_DELETE_ELEM", unix.BPF_MAP_UPDATE_BATCH: "MAP_UPDATE_BATCH",
		unix.BPF_MAP_FREEZE: "MAP_FREEZE", unix.BPF_PROG_ATTACH: "PROG_ATTACH", unix.BPF_PROG_DETACH: "PROG_DETACH",
		unix.BPF_PROG_TEST_RUN: "PROG_TEST_RUN", unix.BPF_RAW_TRACEPOINT_OPEN: "RAW_TRACEPOINT_OPEN", unix.BPF_BTF_LOAD: "BTF_LOAD",
		unix.BPF_LINK_UPDATE: "LINK_UPDATE", unix.BPF_LINK_DETACH: "LINK_DETACH", unix.BPF_PROG_BIND_MAP: "PROG_BIND_MAP",
		bpfTokenCreate: "TOKEN_CREATE",
	}
	if name, ok := names[cmd]; ok {
		return name
	}
	return fmt.Sprint("command ", cmd)
}
