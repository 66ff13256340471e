// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// space is a thread that does what must be done in other namespaces than this process's: starting processes, opening
// sockets, mounting. Its processes die with this one, however it dies: the kernel tells them of the end of the thread that
// started them, and tests that enter network namespaces end threads, so this one does nothing else.
type space struct {
	jobs  chan func()
	inner bool // it is in a PID namespace, whose processes end with the first of them
}

func newSpace() *space {
	s := &space{jobs: make(chan func())}
	onOwnThread(func() {
		for job := range s.jobs {
			job()
		}
	})
	return s
}

// onOwnThread runs f in a goroutine of its own on a thread that no other goroutine gets: it ends with f, as f may leave it in
// other namespaces. It is not the first thread of the process, which cannot end, and which /proc/self is.
func onOwnThread(f func()) {
	taken := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f) // while this goroutine holds the first one
			runtime.UnlockOSThread()
			close(taken)
			return
		}
		close(taken)
		f()
	}()
	<-taken
}

// close ends the thread, and with it whatever still runs.
func (s *space) close() { close(s.jobs) }

// do runs f on the thread. f must not end the test: it returns its error.
func (s *space) do(f func() error) error {
	done := make(chan error)
	s.jobs <- func() { done <- f() }
	return <-done
}

// enter moves the thread into all namespaces of a process but its user namespace.
func (s *space) enter(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(fd)
	s.inner = true
	return s.do(func() error {
		// Threads share their working directory, and one in another mount namespace needs its own.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC
		if err := unix.Setns(fd, all); err != nil {
			return fmt.Errorf("enter the namespaces of %d: %w", pid, err)
		}
		return nil
	})
}

// start starts a command, whose path must be absolute: it is looked up by whoever made it, who may see other files.
func (s *space) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if !s.inner { // in another PID namespace the parent cannot be seen, which Go takes for its death
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	return s.do(cmd.Start)
}

// run starts a command and waits for its end.
func (s *space) run(cmd *exec.Cmd) error {
	if err := s.start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// process is a component that runs.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it is gone
}

// spawn starts a component, which writes to a log.
func (s *space) spawn(name, log string, cmd *exec.Cmd) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own
	cmd.Stdout, cmd.Stderr = out, out
	if err := s.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		cmd.Wait() //nolint:errcheck // it is killed, or its log says more
		close(p.done)
	}()
	return p, nil
}

// end sends a signal and waits until the process is gone.
func (p *process) end(signal os.Signal) {
	p.cmd.Process.Signal(signal) //nolint:errcheck // an error says that it is gone already
	<-p.done
}

func (p *process) kill() { p.end(os.Kill) }

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// early is the error of a process that has ended though nobody wanted it to.
func (p *process) early() error {
	return fmt.Errorf("%s ended early (%v):\n%s", p.name, p.cmd.ProcessState, tail(p.log))
}

// absolute is where the PATH of this process has a program.
func absolute(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// output runs a program of this machine.
func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return string(out), nil
}

func readAll(r io.Reader) (string, error) {
	out, err := io.ReadAll(r)
	return string(out), err
}
