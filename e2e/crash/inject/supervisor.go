// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options configures a Supervisor.
type Options struct {
	// Name makes the name of an effect from that of its system call and what that changes, with paths as they are. The
	// same effect must get the same name in every run. An effect without a name passes unseen.
	Name func(call, what string) string
}

// Fault is what happens at an effect.
type Fault struct {
	Effect string
	// Nth says which effect of this name since Watch, from 1; 0: each.
	Nth int
	// Errno is what the system call returns, and is all that it does; 0: the program is killed before it.
	Errno unix.Errno
}

// Supervisor answers for the system calls of a program, which may be started again when it has ended.
type Supervisor struct {
	name func(call, what string) string

	mu      sync.Mutex
	faults  []Fault
	effects []string       // since Watch
	counts  map[string]int // of effects
	hit     map[Fault]bool
	unknown map[string]bool

	serving sync.WaitGroup
}

// New makes a Supervisor. Until Watch it lets everything pass.
func New(o Options) *Supervisor {
	return &Supervisor{name: o.Name, counts: map[string]int{}, hit: map[Fault]bool{}, unknown: map[string]bool{}}
}

// Start starts a program under supervision. The caller waits for its end as for any other.
func (s *Supervisor) Start(cmd *exec.Cmd) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "listener"), os.NewFile(uintptr(fds[1]), "listener")
	defer ours.Close()
	launched(cmd, theirs)
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	listener, err := receive(ours)
	if err != nil {
		_ = cmd.Process.Kill() // it has ended by itself, and said why
		return fmt.Errorf("supervise: %w", err)
	}
	pid := cmd.Process.Pid
	s.serving.Go(func() {
		defer unix.Close(listener)
		s.serve(listener, pid)
	})
	return nil
}

// Wait returns when every program that was started has ended.
func (s *Supervisor) Wait() { s.serving.Wait() }

// Watch begins to take down effects, and lets faults happen among them.
func (s *Supervisor) Watch(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults, s.effects = faults, nil
	clear(s.counts)
	clear(s.hit)
}

// Done returns the effects since Watch, in their order, and which faults happened. From here on there are none.
func (s *Supervisor) Done() (effects []string, hit map[Fault]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	return slices.Clone(s.effects), maps.Clone(s.hit)
}

// Unknown lists the system calls so far of which nobody has said whether they change something.
func (s *Supervisor) Unknown() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.unknown))
}

// Linux' struct seccomp_notif, with its struct seccomp_data, and struct seccomp_notif_resp (linux/seccomp.h).
type notification struct {
	id     uint64
	pid    uint32 // of the thread
	_      uint32
	number int32
	_      uint32
	_      uint64
	args   [6]uint64
}

type response struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

// serve answers until the program has ended.
func (s *Supervisor) serve(listener, pid int) {
	for launching := true; ; {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			panic(fmt.Sprint("inject: poll: ", err))
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents != 0 {
				return // nobody is left who could ask
			}
			continue
		}
		var n notification
		if errno := control(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); errno != 0 {
			continue // its thread was interrupted, or has ended
		}
		r := response{id: n.id}
		c := call{name: callName(int(n.number)), tid: int(n.pid), args: n.args}
		if launching && c.name == "execve" { // what becomes of launch
			launching, c.name = false, "launch"
		}
		switch errno, kill := s.judge(c); {
		case kill:
			_ = unix.Kill(pid, unix.SIGKILL)
			continue // the call is never answered
		case errno != 0:
			r.error = -int32(errno)
		default:
			r.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
		}
		control(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)) // fails if its thread has ended
	}
}

func control(fd int, request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	return errno
}

// judge says what happens at a call: an error, the end, or nothing.
func (s *Supervisor) judge(c call) (errno unix.Errno, kill bool) {
	describe, ok := known[c.name]
	if c.name == "launch" {
		return 0, false
	}
	if !ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unknown[c.name] = true
		return 0, false
	}
	what := describe(c)
	if what == "" {
		return 0, false
	}
	name := s.name(c.name, what)
	if name == "" {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.effects = append(s.effects, name)
	s.counts[name]++
	for _, f := range s.faults {
		if f.Effect == name && (f.Nth == 0 || f.Nth == s.counts[name]) {
			s.hit[f] = true
			return f.Errno, f.Errno == 0
		}
	}
	return 0, false
}
