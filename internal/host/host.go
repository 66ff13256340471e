// SPDX-License-Identifier: Apache-2.0

// Package host runs functions where the node is, in a process that is not: the node plugin in a container has a mount, a
// network and a cgroup namespace of its own, but volumes are mounted for kubelet, and programs attach to the node's interfaces
// and see its cgroups.
//
//	err := host.Process("/proc/1").Do(func() error { return mountOn("/var/lib/kubelet/pods/...") })
//
// A mount that is made there is on the node at once. No mount propagation takes part, so the container need not be
// privileged, which Kubernetes demands for Bidirectional.
//
// Invariants:
//   - only the function is there: the rest of the process, registries and the API server above all, stays where it is, and
//     so does the process's first thread, which /proc/<pid> is about (TestOnlyTheFunctionIsThere);
//   - a mount is made on the node, not here (TestMountIsMadeOnTheNode).
package host

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/panics"
)

// Process is the directory in a procfs of a process that is where the node is, and stays: /proc/1 where that procfs is the
// node's own. Empty is this process.
type Process string

// Do calls f in the node's mount, network and cgroup namespace, with the node's root directory. Goroutines that f starts are not
// there, and what /proc/self says is not about f's thread: what /proc/thread-self says is. A panic of f is its error.
//
// It needs CAP_SYS_PTRACE, CAP_SYS_ADMIN and CAP_SYS_CHROOT.
func (p Process) Do(f func() error) error {
	if p == "" {
		return f()
	}
	return p.OnThread(f)
}

// OnThread is Do on a thread that ends with f, so f may move it to other namespaces.
func (p Process) OnThread(f func() error) error {
	done := make(chan error)
	go onThread(func() {
		done <- panics.Catch(func() error {
			if p != "" {
				if err := p.enter(); err != nil {
					return err
				}
			}
			return f()
		})
	})
	return <-done
}

// onThread calls f on a thread that nothing else runs on before or after: f may leave it in any state.
func onThread(f func()) {
	// Not unlocked, so the runtime ends the thread. But it keeps the process's first one for good. While that one is held
	// here, another goroutine gets another thread.
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

// enter moves the calling thread.
func (p Process) enter() error {
	// Root and working directory are shared by all threads, and a mount namespace has its own (setns(2)).
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("host process: unshare: %w", err)
	}
	// The mount namespace last: p leads nowhere from within it.
	for _, ns := range []struct {
		name string
		kind int
	}{{"net", unix.CLONE_NEWNET}, {"cgroup", unix.CLONE_NEWCGROUP}, {"mnt", unix.CLONE_NEWNS}} {
		if err := enter(filepath.Join(string(p), "ns", ns.name), ns.kind); err != nil {
			return fmt.Errorf("host process: %w; name the directory of a process of the node, and see bpfvol doctor for capabilities", err)
		}
	}
	return nil
}

func enter(path string, kind int) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), kind); err != nil {
		return fmt.Errorf("enter %s: %w", path, err)
	}
	return nil
}
