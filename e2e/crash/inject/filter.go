// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"fmt"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// harmless are the system calls that pass without a word: they read, wait, or change what ends with the process. All others
// come to the supervisor, which knows them (known) or tells of them.
var harmless = []string{
	// memory, threads, signals, time
	"arch_prctl", "brk", "clock_gettime", "clock_nanosleep", "clone", "clone3", "exit", "exit_group", "futex", "getcpu", "getrandom",
	"getrlimit", "gettimeofday", "madvise", "membarrier", "mincore", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "prctl", "prlimit64", "restart_syscall",
	"rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait", "sched_getaffinity", "sched_yield", "set_robust_list",
	"set_tid_address", "setitimer", "sigaltstack", "tgkill", "time", "timer_create", "timer_delete", "timer_settime", "wait4", "waitid",
	// who am I
	"capget", "capset", "geteuid", "getegid", "getgid", "getpgid", "getpid", "getppid", "gettid", "getuid", "sysinfo", "uname",
	// descriptors
	"close", "close_range", "dup", "dup2", "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "fcntl",
	"inotify_add_watch", "inotify_init1", "inotify_rm_watch", "lseek", "pidfd_open", "pipe", "pipe2", "poll", "ppoll", "pselect6", "select",
	// reading
	"access", "faccessat", "faccessat2", "fstat", "fstatfs", "getcwd", "getdents64", "lstat", "newfstatat", "pread64", "preadv", "read",
	"readlink", "readlinkat", "readv", "stat", "statfs", "statmount", "statx",
	// sockets, whose other side hears of it by its own calls
	"accept", "accept4", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom", "recvmmsg", "recvmsg", "setsockopt", "shutdown", "socket", "socketpair",
}

// reading are the commands of bpf(2) that change nothing.
var reading = []uint32{
	unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_GET_NEXT_KEY, unix.BPF_OBJ_GET, unix.BPF_PROG_GET_NEXT_ID, unix.BPF_MAP_GET_NEXT_ID,
	unix.BPF_PROG_GET_FD_BY_ID, unix.BPF_MAP_GET_FD_BY_ID, unix.BPF_OBJ_GET_INFO_BY_FD, unix.BPF_PROG_QUERY, unix.BPF_BTF_GET_FD_BY_ID,
	unix.BPF_TASK_FD_QUERY, unix.BPF_BTF_GET_NEXT_ID, unix.BPF_MAP_LOOKUP_BATCH, unix.BPF_LINK_GET_FD_BY_ID, unix.BPF_LINK_GET_NEXT_ID,
	unix.BPF_ITER_CREATE,
}

// writing are the flags of open(2) of which one is there where a file may change.
const writing = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC | unix.O_TMPFILE&^unix.O_DIRECTORY

// Offsets in struct seccomp_data. The machines that we know are little-endian, so the lower half of an argument comes first.
const (
	offNumber   = 0
	offArch     = 4
	offArgument = 16
)

func argument(n uint32) bpf.LoadAbsolute { return bpf.LoadAbsolute{Off: offArgument + 8*n, Size: 4} }

// filter assembles what the kernel asks at every system call.
func filter() ([]unix.SockFilter, error) {
	machine, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	allow, notify := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}, bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}
	code := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(machine.ID), SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
	}
	for _, name := range harmless {
		if number, ok := machine.SyscallNames[name]; ok { // each machine has its own
			code = append(code, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(number), SkipTrue: 1}, allow)
		}
	}
	code = append(code,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_OPENAT, SkipTrue: 4},
		argument(2),
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: writing, SkipTrue: 1},
		allow, notify,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_BPF, SkipTrue: 1},
		notify,
		argument(0),
	)
	for _, cmd := range reading {
		code = append(code, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: cmd, SkipTrue: 1}, allow)
	}
	raw, err := bpf.Assemble(append(code, notify))
	if err != nil {
		return nil, fmt.Errorf("seccomp filter: %w", err)
	}
	var out []unix.SockFilter
	for _, i := range raw {
		out = append(out, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	return slices.Clip(out), nil
}

// callName is what a system call is called.
func callName(number int) string {
	if machine, err := arch.GetInfo(""); err == nil {
		if name, ok := machine.SyscallNumbers[number]; ok {
			return name
		}
	}
	return fmt.Sprint("syscall ", number)
}
