// SPDX-License-Identifier: Apache-2.0

package kernelstate_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/kernelstate"
)

func TestMain(m *testing.M) { bpftest.Main(m) }

func TestSinceNamesWhatWasMade(t *testing.T) {
	bpftest.Root(t)
	parent := t.TempDir()
	before, err := kernelstate.Take(parent)
	if err != nil {
		t.Fatal(err)
	}

	bpffs := bpftest.BPFFS(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "made", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(bpffs, "pinned")); err != nil {
		t.Fatal(err)
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "made", Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec", Program: p})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(filepath.Join(parent, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	now, err := kernelstate.Take(parent, bpffs)
	if err != nil {
		t.Fatal(err)
	}
	got := now.Since(before)
	for _, want := range []string{
		fmt.Sprintf(`map %d "made" (Array)`, id(t, m)),
		"pin " + filepath.Join(bpffs, "pinned"),
		"pin " + filepath.Join(parent, "file"),
		"mount " + bpffs + " (bpf)",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no line %q in %q", want, got)
		}
	}
	for _, want := range []string{`"made" (RawTracepoint)`, "link "} {
		if !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if again := now.Since(now); again != nil {
		t.Errorf("since itself: %q, want nothing", again)
	}
}

func TestNamesAreTheSameForTheLike(t *testing.T) {
	bpftest.Root(t)
	const line = `map "like" (Array)`
	// wantLines makes maps, and waits for the kernel to free those of before.
	wantLines := func(want int) {
		t.Helper()
		for range want {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "like", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
		}
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			s, err := kernelstate.Take()
			if err != nil {
				t.Fatal(err)
			}
			names := s.Names()
			got := len(slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name != line }))
			if got == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d lines %q in %q, want %d", got, line, names, want)
			}
		}
	}
	wantLines(1)
	wantLines(1) // another one, by its id
	wantLines(2)
	wantLines(0)
}

func TestLeftoversWaitsForWhatTheCollectorFrees(t *testing.T) {
	bpftest.Root(t)
	before, err := kernelstate.Take()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		t.Fatal(err)
	}
	left, err := kernelstate.Leftovers(t.Context(), before)
	if err != nil || left != nil {
		t.Errorf("got %q, %v; want nothing left", left, err)
	}
}

func TestTakeIgnoresDirectoriesThatDoNotExist(t *testing.T) {
	bpftest.Root(t)
	if _, err := kernelstate.Take(filepath.Join(t.TempDir(), "absent")); err != nil {
		t.Error(err)
	}
}

func id(t *testing.T, m *ebpf.Map) ebpf.MapID {
	t.Helper()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, ok := info.ID()
	if !ok {
		t.Fatal("the kernel gives maps no ids")
	}
	return id
}
