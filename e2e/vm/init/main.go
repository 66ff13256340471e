// SPDX-License-Identifier: Apache-2.0

// Init is the first process of the virtual machine that e2e/vm boots: it sets up what an ordinary system has, runs
// the test binaries that the file /packages lists, one after another, and powers off.
//
// Of each it runs the tests whose names match /pattern. A line of /packages is an import path, a binary and the directory to run it in; an argument is the number of the line
// to begin with. What a test binary writes goes to the second serial port, in the format of e2e/vm/protocol; what init
// and the kernel say, to the first.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/vm/protocol"
)

func main() {
	if err := run(); err != nil {
		// The host sees no end of the run in the protocol, and this on the console.
		fmt.Println("init:", err)
	}
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Println("init: power off:", err)
}

func run() error {
	if err := mounts(); err != nil {
		return err
	}
	if err := modules(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	// As systemd sets it; the kernel's own is 4096 at most.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	results, err := openRaw("/dev/ttyS1")
	if err != nil {
		return err
	}
	list, err := os.ReadFile("/packages")
	if err != nil {
		return err
	}
	pattern, err := os.ReadFile("/pattern")
	if err != nil {
		return err
	}
	first := 0
	if len(os.Args) > 1 {
		if first, err = strconv.Atoi(os.Args[1]); err != nil {
			return err
		}
	}
	for _, line := range slices.Collect(strings.Lines(string(list)))[first:] {
		var pkg, binary, dir string
		if _, err := fmt.Sscan(line, &pkg, &binary, &dir); err != nil {
			return fmt.Errorf("/packages: %q: %w", line, err)
		}
		fmt.Fprintln(results, protocol.Start(pkg))
		status, err := test(binary, dir, string(pattern), results)
		if err != nil {
			return fmt.Errorf("%s: %w", pkg, err)
		}
		fmt.Fprintf(results, "\n%s\n", protocol.End(status))
	}
	fmt.Fprintln(results, protocol.Done)
	return nil
}

// mounts sets up what systemd does on an ordinary machine.
func mounts() error {
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"devtmpfs", "/dev"},
		{"tmpfs", "/tmp"},
		{"tmpfs", "/run"},
		{"bpf", "/sys/fs/bpf"},
		{"cgroup2", "/sys/fs/cgroup"},
		{"tracefs", "/sys/kernel/tracing"},
	} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.dir, err)
		}
	}
	if err := os.Chmod("/tmp", 0o777|os.ModeSticky); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// modules loads what is in /modules, in the order of the names.
func modules() error {
	files, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

// openRaw opens a serial port that passes bytes on as they are.
func openRaw(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// test runs a test binary and returns its exit status. It takes leave of every other process that ends meanwhile:
// orphans are the first process's.
func test(binary, dir, pattern string, out *os.File) (status int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	p, err := os.StartProcess(binary, []string{binary, "-test.v=test2json", "-test.short", "-test.run=" + pattern, "-test.timeout=" + protocol.Timeout.String()}, &os.ProcAttr{
		Dir:   dir,
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "PWD=" + dir},
		Files: []*os.File{null, out, out},
	})
	if err != nil {
		return 0, err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid == p.Pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		case pid == p.Pid:
			return ws.ExitStatus(), nil
		}
	}
}
