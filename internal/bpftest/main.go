// SPDX-License-Identifier: Apache-2.0

// Package bpftest is what tests against the real kernel need. Only tests import it.
//
//	func TestMain(m *testing.M) { bpftest.Main(m) }
//
//	func TestDropStopsPackets(t *testing.T) {
//		bpftest.Root(t)
//		a, b := bpftest.Pair(t)          // two network namespaces, veth0 to veth0
//		...
//		a.SendUDP(t, b.Addr, 10)
//	}
//
// Invariants:
//   - a package whose tests leave a program, link, map, mount, network namespace or file descriptor behind fails, and
//     says what it left (TestMainNoticesLeaks);
//   - packages that use Main run one after another on a machine, so that they do not see each other's objects
//     (TestMainWaitsForOthers);
//   - a skip says the kernel's own answer as its reason.
package bpftest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/kernelstate"
)

// roleEnv tells a process that a test started from its own binary what Main is to do there: nothing ("child"), which
// is what Main leaves in the environment, or the checks without the lock ("checked").
const roleEnv = "BPFVOL_BPFTEST_ROLE"

// lockName is the file in the temporary directory that Main holds locked, so that one kernel test package runs at a time.
const lockName = "bpfvol-kernel-tests.lock"

// Main runs the tests of a package and exits. The package fails if its tests leave kernel objects or file descriptors
// behind. A process that a test starts from its own binary runs without lock and checks: its parent does both.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main without the exit, for a package whose TestMain wraps m.
func Run(m interface{ Run() int }) int {
	role := os.Getenv(roleEnv)
	if role == "child" || os.Geteuid() != 0 {
		return m.Run()
	}
	if role == "" {
		unlock, err := Alone()
		if err != nil {
			fmt.Fprintln(os.Stderr, "bpftest:", err)
			return 1
		}
		defer unlock()
	}
	os.Setenv(roleEnv, "child")
	return checked(m.Run, os.Stderr)
}

// checked runs the tests and turns what they leave behind into a failure.
func checked(run func() int, report io.Writer) int {
	// The Go runtime opens its poller with the first pipe and keeps it.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	fds, err := openFiles()
	if err != nil {
		fmt.Fprintln(report, "bpftest:", err)
		return 1
	}
	before, err := kernelstate.Take(pinDirs...)
	if err != nil {
		fmt.Fprintln(report, "bpftest:", err)
		return 1
	}

	code := run()

	// Descriptors first: the garbage collection of Leftovers would close forgotten ones.
	left := newFiles(fds)
	objects, err := kernelstate.Leftovers(context.Background(), before, pinDirs...)
	if err != nil {
		fmt.Fprintln(report, "bpftest:", err)
		code = max(code, 1)
	}
	for _, what := range append(left, objects...) {
		fmt.Fprintln(report, "bpftest: left behind:", what)
		code = max(code, 1)
	}
	return code
}

// pinDirs are where a test could leave a pin on the machine's own bpffs.
var pinDirs = []string{"/sys/fs/bpf", "/run/bpfvol"}

// NothingLeft makes the test fail if, at its end, anything is left of the kernel objects made since this call, or of
// the files below dirs. Call it first: cleanups run in reverse order.
func NothingLeft(t testing.TB, dirs ...string) {
	t.Helper()
	before, err := kernelstate.Take(dirs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := kernelstate.Leftovers(context.Background(), before, dirs...)
		if err != nil {
			t.Error(err)
		}
		for _, what := range left {
			t.Error("left behind:", what)
		}
	})
}

// Alone waits until no kernel test runs on this machine, and keeps others waiting until done is called: they would take the
// objects of the demo or the benchmarks for something that they left behind.
func Alone() (done func(), err error) { return lock(filepath.Join(os.TempDir(), lockName)) }

// lock waits until no other process holds the file locked.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of kernel tests: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock of kernel tests: %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// openFiles returns this process's descriptors and what they are open on.
func openFiles() (map[string]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	open := map[string]string{}
	for _, e := range entries {
		// The descriptor that read the directory is closed by now and has no target.
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			open[e.Name()] = target
		}
	}
	return open, nil
}

// newFiles lists the descriptors that are not in before, after giving connections time to close.
func newFiles(before map[string]string) []string {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		now, err := openFiles()
		if err != nil {
			return []string{err.Error()}
		}
		var left []string
		for fd, target := range now {
			if was, ok := before[fd]; !ok || was != target {
				left = append(left, strings.TrimSpace(fmt.Sprintf("file descriptor %s on %s %s", fd, target, bpfID(fd))))
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			slices.Sort(left)
			return left
		}
	}
}

// bpfID returns the line of a descriptor's fdinfo that names its BPF object, or "".
func bpfID(fd string) string {
	info, err := os.ReadFile("/proc/self/fdinfo/" + fd)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(info)) {
		for _, key := range []string{"link_id:", "prog_id:", "map_id:"} {
			if id, ok := strings.CutPrefix(line, key); ok {
				return "(" + key + " " + strings.TrimSpace(id) + ")"
			}
		}
	}
	return ""
}
