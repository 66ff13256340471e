// SPDX-License-Identifier: Apache-2.0

// Package events tests what a user sees when something is wrong: bad input of every kind goes over the CSI socket to
// the real `bpfvol serve`, and each answer is compared with code and text, and with docs/events.md. Each leaves nothing
// behind.
package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestMain(m *testing.M) { os.Exit(bpftest.Run(isolated{m})) }

const (
	// binVariable holds the path of bpfvol. Where it is not set, and there is go, bpfvol is built.
	binVariable = "BPFVOL_TEST_BIN"
	// insideVariable is set in the process that runs the tests.
	insideVariable = "BPFVOL_TEST_INSIDE"
)

// isolated runs the tests in a process that has a network namespace of its own, with lo, and eth0 joined to eth1: so
// that daemon, registry and tests are together there, and nowhere else.
type isolated struct{ m *testing.M }

func (i isolated) Run() int {
	if os.Geteuid() != 0 {
		return i.m.Run()
	}
	run := outside
	if os.Getenv(insideVariable) != "" {
		run = i.inside
	}
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "events:", err)
		return 1
	}
	return code
}

// outside builds bpfvol and runs this program again.
func outside() (code int, err error) {
	bin := os.Getenv(binVariable)
	if _, err := exec.LookPath("go"); bin == "" && err == nil {
		dir, err := os.MkdirTemp("", "bpfvol-bin-")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		bin = filepath.Join(dir, "bpfvol")
		if err := gobuild.Build(context.Background(), bin, "", "./cmd/bpfvol"); err != nil {
			return 0, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	tests := exec.Command(self, os.Args[1:]...)
	tests.Env = append(os.Environ(), insideVariable+"=1", binVariable+"="+bin)
	tests.Stdout, tests.Stderr = os.Stdout, os.Stderr
	tests.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err = tests.Run()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return max(failed.ExitCode(), 1), nil
	}
	return 0, err
}

func (i isolated) inside() (code int, err error) {
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}); err != nil {
		return 0, fmt.Errorf("eth0: %w", err)
	}
	for _, name := range []string{"lo", "eth0", "eth1"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	return i.m.Run(), nil
}
