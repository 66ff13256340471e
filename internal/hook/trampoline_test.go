// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// fentry loads a program for the entry of a kernel function. It skips the test where the kernel does not let it.
func fentry(t *testing.T, function string) *ebpf.Program {
	t.Helper()
	prog, runs, err := newCounter(hookCase{typ: ebpf.Tracing, attach: ebpf.AttachTraceFEntry, hook: &volume.Fentry{Function: function}})
	bpftest.SkipIfForbidden(t, err)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close(); runs.Close() })
	return prog
}

func TestFullKernelFunctionSaysSo(t *testing.T) {
	bpftest.Root(t)
	h := &volume.Fentry{Function: pgidFunction}
	for i := range mostAtFunction + 1 {
		links, err := Attach(fentry(t, pgidFunction), h)
		if i < mostAtFunction {
			if err != nil {
				t.Fatalf("program %d: %v", i+1, err)
			}
			t.Cleanup(func() { links[0].Close() })
			continue
		}
		want := `kernel function "security_task_getpgid": 38 programs run there, more than that the kernel does not take; use another, or kprobe`
		if !errors.Is(err, unix.E2BIG) || err.Error() != want {
			t.Errorf("program %d: got %v, want %s", i+1, err, want)
		}
	}
}

// The kernel's tracing does not trace itself: the compiler leaves no room for a call at the beginning of its functions.
func TestFentryOfUntraceableFunctionSaysSo(t *testing.T) {
	bpftest.Root(t)
	links, err := Attach(fentry(t, "tracing_lseek"), &volume.Fentry{Function: "tracing_lseek"})
	if want := `kernel function "tracing_lseek": the kernel cannot call programs from it; use another, or kprobe`; !errors.Is(err, ErrUnfit) || err.Error() != want {
		t.Errorf("got %v, %v, want %s", links, err, want)
	}
}

// An LSM program can refuse what a process does.
func TestLSMProgramRefuses(t *testing.T) {
	bpftest.Root(t)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "refuse", Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac, AttachTo: "task_getpgid", License: "GPL",
		Instructions: asm.Instructions{
			asm.FnGetCurrentPidTgid.Call(),
			asm.RSh.Imm(asm.R0, 32),
			asm.JNE.Imm(asm.R0, int32(os.Getpid()), "allow"),
			asm.Mov.Imm(asm.R0, -int32(unix.EACCES)),
			asm.Return(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("allow"),
			asm.Return(),
		},
	})
	bpftest.SkipIfForbidden(t, err)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	links, err := Attach(prog, &volume.LSM{Name: "task_getpgid"})
	bpftest.SkipIfNotSupported(t, err)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Getpgid(os.Getpid()); !errors.Is(err, unix.EACCES) {
		t.Errorf("getpgid: %v, want %v", err, unix.EACCES)
	}
	links[0].Close()
	if _, err := unix.Getpgid(os.Getpid()); err != nil {
		t.Errorf("getpgid after the end: %v", err)
	}
}

// Without bpf among the active security modules the kernel takes a program and its link, and never runs the program.
func TestLSMProgramThatWouldNeverRunIsRefused(t *testing.T) {
	bpftest.Root(t)
	modules, err := SecurityModules()
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(modules, "bpf") {
		t.Skipf("active security modules are %v", modules)
	}
	c := cases(t, "")["lsm"]
	prog, runs, err := newCounter(c)
	bpftest.SkipIfForbidden(t, err)
	if err != nil {
		t.Fatal(err)
	}
	defer runs.Close()
	defer prog.Close()
	links, err := Attach(prog, c.hook)
	want := `LSM hook "task_getpgid": no program would run there, as bpf is not among the active security modules; boot the node with lsm=` +
		strings.Join(modules, ",") + ",bpf"
	if !errors.Is(err, ebpf.ErrNotSupported) || err.Error() != want || links != nil {
		t.Errorf("got %v, %v, want %s", links, err, want)
	}

	l, err := link.AttachLSM(link.LSMOptions{Program: prog})
	if err != nil {
		t.Fatalf("the kernel refuses it by itself: %v", err)
	}
	defer l.Close()
	c.trigger(t, place{})
	if n, _ := runsOf(t, runs); n != 0 {
		t.Errorf("the program ran %d times: it need not be refused", n)
	}
}

// BTF of some kernels has each of several functions that have one name.
func TestTargetThatIsSeveralSaysSo(t *testing.T) {
	bpftest.Root(t)
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for typ, err := range kernel.All() {
		if err != nil {
			t.Fatal(err)
		}
		f, ok := typ.(*btf.Func)
		if !ok || !seen[f.Name] {
			seen[typ.TypeName()] = ok
			continue
		}
		err := CheckTarget(&volume.Fentry{Function: f.Name})
		if want := `kernel function "` + f.Name + `": the kernel has several of this name; use another`; !errors.Is(err, ErrUnfit) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		return
	}
	t.Skip("no function is twice in this kernel's BTF")
}

// These are missing when a program is loaded, before it could be attached.
func TestTargetsThatAreMissingHaveNeighbours(t *testing.T) {
	bpftest.Root(t)
	for _, c := range []struct {
		hook volume.Hook
		want string
	}{
		{&volume.Fentry{Function: pgidFunction + "x"}, `kernel function "security_task_getpgidx" does not exist; did you mean "security_task_getpgid"?`},
		{&volume.LSM{Name: "file_opn"}, `LSM hook "file_opn" does not exist; did you mean "file_open"?`},
		{&volume.Iter{Target: "xyzzy_xyzzy_xyzzy"}, `iterator "xyzzy_xyzzy_xyzzy" does not exist; there are: bpf_link, bpf_map, `},
		{&volume.RawTracepoint{Name: "sched_swich"}, `raw tracepoint "sched_swich" does not exist; did you mean "sched_switch"?`},
	} {
		if err := CheckTarget(c.hook); !errors.Is(err, ErrMissing) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s...", c.hook, err, c.want)
		}
	}
	for _, h := range []volume.Hook{
		&volume.Fentry{Function: pgidFunction}, &volume.LSM{Name: "file_open"}, &volume.Iter{Target: "task"},
		&volume.RawTracepoint{Name: "sched_switch"}, &volume.Tracepoint{Group: "no", Name: "such"},
	} {
		if err := CheckTarget(h); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
}
