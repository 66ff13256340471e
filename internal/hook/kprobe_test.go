// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// kprobes skips the test on kernels that cannot probe their functions, and returns a program for probes.
func kprobes(t *testing.T) (*ebpf.Program, *ebpf.Map) {
	t.Helper()
	bpftest.Root(t)
	_, _, err := readProbeSource()
	bpftest.SkipIfNotSupported(t, err)
	if err != nil {
		t.Fatal(err)
	}
	return counter(t, ebpf.Kprobe, 0)
}

func TestKprobeInsideAFunction(t *testing.T) {
	prog, runs := kprobes(t)
	taken, between := 0, 0
	for _, offset := range []uint64{1, 4, 5, 8, 9} { // on amd64, 5 is behind the call of the function tracer, and 9 if there is endbr64
		links, err := Attach(prog, &volume.Kprobe{Function: "sys_getpgid", Offset: offset})
		switch {
		case err == nil:
			before, _ := runsOf(t, runs)
			getpgid(t, place{})
			if after, _ := runsOf(t, runs); after != before {
				taken++
			}
			links[0].Close()
		case errors.Is(err, ErrUnfit) && strings.Contains(err.Error(), "is inside an instruction; choose where one begins"):
			between++
		default:
			t.Errorf("offset %d: %v", offset, err)
		}
	}
	if taken == 0 || between == 0 {
		t.Errorf("%d of the offsets run, and %d are inside an instruction; want some of each", taken, between)
	}
}

func TestKprobeErrorsSayWhy(t *testing.T) {
	prog, _ := kprobes(t)
	several := severalOfOneName(t)
	for _, c := range []struct {
		hook *volume.Kprobe
		kind error
		want string
	}{
		{&volume.Kprobe{Function: pgidFunction + "x"}, ErrMissing, `kernel function "security_task_getpgidx" does not exist; did you mean "security_task_getpgid"?`},
		{&volume.Kprobe{Function: "sys_getpgidx"}, ErrMissing, `kernel function "sys_getpgidx" does not exist; did you mean "`},
		{&volume.Kprobe{Function: pgidFunction, Offset: 1 << 20}, ErrUnfit, `kernel function "security_task_getpgid": offset 1048576 is outside its `},
		{&volume.Kprobe{Function: "kprobe_dispatcher"}, ErrUnfit, `kernel function "kprobe_dispatcher": the kernel allows no probe of it; probe another`},
		{&volume.Kprobe{Function: several}, ErrUnfit, `kernel function "` + several + `": the kernel has several of this name; probe another`},
	} {
		links, err := Attach(prog, c.hook)
		if !errors.Is(err, c.kind) || links != nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s...", c.hook, err, c.want)
		}
	}
}

// severalOfOneName returns the name of functions of the kernel's own that can be probed, or could if there were one.
func severalOfOneName(t *testing.T) string {
	t.Helper()
	seen := map[string]int{}
	for s := range ksyms() {
		if s.kind == "t" && !strings.ContainsAny(s.name, ".$") {
			if seen[s.name]++; seen[s.name] > 1 && !strings.HasPrefix(s.name, "__pfx_") {
				return s.name
			}
		}
	}
	t.Fatal("no two functions of the kernel have the same name")
	return ""
}

// The functions of system calls have another name on each kind of machine.
func TestKprobeFindsSystemCallsByTheirName(t *testing.T) {
	prog, runs := kprobes(t)
	attach(t, prog, &volume.Kprobe{Function: "sys_getpgid"})
	before, _ := runsOf(t, runs)
	getpgid(t, place{})
	if after, _ := runsOf(t, runs); after == before {
		t.Error("the program did not run")
	}
}

func TestProbesLeaveNoNameInTracefs(t *testing.T) {
	prog, _ := kprobes(t)
	attach(t, prog, &volume.Kprobe{Function: pgidFunction})
	attach(t, prog, &volume.Uprobe{Path: libc(t), Symbol: "malloc"})
	fs, err := openDetached("tracefs")
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	for _, file := range []string{"kprobe_events", "uprobe_events"} {
		if text, err := fs.read(file); err != nil || text != "" {
			t.Errorf("%s: %q, %v; want nothing", file, text, err)
		}
	}
}

func TestKernelWithoutKprobesSaysSo(t *testing.T) {
	bpftest.Root(t)
	prog, _ := counter(t, ebpf.Kprobe, 0)
	links, err := Attach(prog, &volume.Kprobe{Function: pgidFunction})
	if err == nil {
		links[0].Close()
		t.Skip("this kernel has kprobes")
	}
	if want := "this kernel cannot probe its functions; use a tracepoint, or a kernel with CONFIG_KPROBE_EVENTS"; !errors.Is(err, ebpf.ErrNotSupported) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
