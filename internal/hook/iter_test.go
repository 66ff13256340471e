// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// iteratorCase is run by whoever reads the link.
var iteratorCase = hookCase{typ: ebpf.Tracing, attach: ebpf.AttachTraceIter, hook: &volume.Iter{Target: "task"}}

// An iterator over cgroups is told an order by Attach, others nothing.
func TestIteratorsRunForEachObject(t *testing.T) {
	bpftest.Root(t)
	for _, target := range []string{"task", "task_file", "bpf_map", "tcp", "cgroup"} {
		t.Run(target, func(t *testing.T) {
			prog, runs, err := newCounter(hookCase{typ: ebpf.Tracing, attach: ebpf.AttachTraceIter, hook: &volume.Iter{Target: target}})
			if err != nil {
				t.Fatal(err)
			}
			defer runs.Close()
			defer prog.Close()
			links := attach(t, prog, &volume.Iter{Target: target})
			if n, _ := runsOf(t, runs); n != 0 {
				t.Errorf("the program ran %d times before anybody read", n)
			}
			file, err := links[0].(*link.Iter).Open()
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if _, err := io.Copy(io.Discard, file); err != nil {
				t.Fatal(err)
			}
			if n, _ := runsOf(t, runs); n == 0 {
				t.Error("the program did not run")
			}
		})
	}
}

func TestPinnedIteratorOutlivesItsMaker(t *testing.T) {
	bpftest.Root(t)
	dir := bpftest.BPFFS(t)
	makeAndKill(t, place{}, "iter", dir, "")
	runs, err := ebpf.LoadPinnedMap(filepath.Join(dir, "runs"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer runs.Close()
	pin := filepath.Join(dir, "link0")
	for range 2 {
		before, _ := runsOf(t, runs)
		if _, err := os.ReadFile(pin); err != nil {
			t.Fatal(err)
		}
		if after, _ := runsOf(t, runs); after == before {
			t.Error("the program does not run for a reader")
		}
	}
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := l.Info()
	l.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) { // it ends on a kernel thread
		l, err := link.NewFromID(info.ID)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if time.Now().After(end) {
			t.Fatal("the link is still there without its pin")
		}
	}
}

// What a program writes is what a reader of the pin reads.
func TestIteratorPrints(t *testing.T) {
	bpftest.Root(t)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "print", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "task", License: "GPL",
		Instructions: asm.Instructions{
			// struct bpf_iter__task { meta; task }, struct bpf_iter_meta { seq; ... }
			asm.LoadMem(asm.R2, asm.R1, 8, asm.DWord),
			asm.JEq.Imm(asm.R2, 0, "done"), // the call after the last
			asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord),
			asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord),
			asm.StoreImm(asm.RFP, -8, 't'|'\n'<<8, asm.Half),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -8),
			asm.Mov.Imm(asm.R3, 2),
			asm.FnSeqWrite.Call(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("done"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	pin := filepath.Join(bpftest.BPFFS(t), "tasks")
	if err := attach(t, prog, &volume.Iter{Target: "task"})[0].Pin(pin); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(pin)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "t\n"); lines < 2 || len(text) != 2*lines {
		t.Errorf("read %q, want a line for each task", text)
	}
}
