// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Cgroup is a control group of the test, directly below the root of the cgroup2 mount, wherever that is.
type Cgroup struct {
	Path string // as in a volume's attributes
	dir  *os.File
}

// NewCgroup makes a cgroup that goes away with the test.
func NewCgroup(t testing.TB) *Cgroup {
	t.Helper()
	path, err := os.MkdirTemp(cgroupMount(t), "bpfvol-e2e-") //nolint:usetesting // a cgroup, in its own file system
	if err != nil {
		t.Skipf("make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		// A process that has just been waited for may still be leaving its cgroup.
		for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if err := os.Remove(path); err == nil {
				return
			} else if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return &Cgroup{Path: filepath.Base(path), dir: dir}
}

func cgroupMount(t testing.TB) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && fields[3] == "/" {
			return fields[4]
		}
	}
	t.Skip("cgroup2 is not mounted")
	return ""
}

// Action prepares a process that does what act knows.
func Action(args ...string) *exec.Cmd {
	return exec.Command("/proc/self/exe", append([]string{actionArg}, args...)...)
}

// Action prepares a process in the cgroup.
func (c *Cgroup) Action(args ...string) *exec.Cmd {
	cmd := Action(args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.dir.Fd())}
	return cmd
}

const actionArg = "nodetest-action"

// act makes the test binary do, for args that Action made:
//
//	udp ADDRESS N    send N datagrams
//	tcp ADDRESS      connect, print a line, hold the connection until standard input ends
//	without CAP CMD  become a command that can never have this capability
func act(args []string) {
	if len(args) < 3 || args[1] != actionArg {
		return
	}
	if err := do(args[2], args[3:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func do(action string, args []string) error {
	switch action {
	case "udp":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		to, err := netip.ParseAddrPort(args[0])
		if err != nil {
			return err
		}
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.WriteToUDPAddrPort(make([]byte, 18), to); err != nil {
				return err
			}
		}
		return nil
	case "without":
		return without(args[0], args[1:])
	case "tcp":
		c, err := net.Dial("tcp4", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Println("connected")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	}
	return fmt.Errorf("no action %q", action)
}
