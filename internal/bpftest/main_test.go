// SPDX-License-Identifier: Apache-2.0

package bpftest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

// leakEnv makes TestLeak leave one of everything behind, with its mount at the variable's value.
const leakEnv = "BPFVOL_BPFTEST_LEAK"

// leaked keeps what TestLeak made reachable: a forgotten object that the collector closes is no leak.
var leaked []any

func TestLeak(t *testing.T) {
	dir := os.Getenv(leakEnv)
	if dir == "" {
		return // the process of TestMainPassesWhatIsClean, or the ordinary run
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "left_map", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	p, err := ebpf.NewProgram(passXDP("left_prog"))
	if err != nil {
		t.Fatal(err)
	}
	ns := NewNetNS(t)
	var l link.Link
	err = ns.Do(func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: 1, Flags: link.XDPGenericMode})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A namespace that nobody holds takes the link's device along, so hold it.
	held, err := os.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	leaked = []any{m, p, l, held}
}

func passXDP(name string) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{Name: name, Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 2), asm.Return(), // XDP_PASS
	}}
}

// runLeak runs TestLeak in a process of its own, under Main's checks.
func runLeak(t *testing.T, dir string) (string, error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestLeak$")
	cmd.Env = append(os.Environ(), roleEnv+"=checked", leakEnv+"="+dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestMainNoticesLeaks(t *testing.T) {
	Root(t)
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	out, err := runLeak(t, dir)
	if err == nil {
		t.Errorf("the package passed:\n%s", out)
	}
	for _, want := range []string{
		`left behind: map \d+ "left_map" \(Hash\)`,
		`left behind: program \d+ "left_prog" \(XDP\)`,
		`left behind: link \d+ \(XDP\)`,
		`left behind: mount ` + dir + ` \(bpf\)`,
		`left behind: file descriptor \d+ on anon_inode:bpf-map \(map_id: \d+\)`,
		`left behind: file descriptor \d+ on net:`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no line %q in:\n%s", want, out)
		}
	}
}

func TestMainPassesWhatIsClean(t *testing.T) {
	Root(t)
	if out, err := runLeak(t, ""); err != nil || strings.Contains(out, "left behind") {
		t.Errorf("a clean package: %v\n%s", err, out)
	}
}

func TestMainWaitsForOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), lockName)
	unlock, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan func())
	go func() {
		unlock, err := lock(path)
		if err != nil {
			t.Error(err)
		}
		second <- unlock
	}()
	select {
	case <-second:
		t.Fatal("two held the lock at once")
	case <-time.After(100 * time.Millisecond):
	}
	unlock()
	(<-second)()
}
