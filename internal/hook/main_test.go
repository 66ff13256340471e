// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// The test binary plays other processes, too: what it is to do is in these variables.
const (
	roleEnv   = "BPFVOL_HOOK_ROLE"
	caseEnv   = "BPFVOL_HOOK_CASE"
	dirEnv    = "BPFVOL_HOOK_DIR"
	cgroupEnv = "BPFVOL_HOOK_CGROUP"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "sockets":
		useSockets()
		os.Exit(0)
	case "burn":
		fmt.Scanln(new(string))
		for range 24 { // more threads than the runtime has started by now
			go burn(time.Minute)
		}
		select {}
	case "maker":
		if err := makeLinks(os.Getenv(caseEnv), os.Getenv(dirEnv)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		select {} // until it is killed
	}
	bpftest.Main(m)
}

// burn keeps a thread busy.
func burn(d time.Duration) {
	runtime.LockOSThread()
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
}

// counter makes a program that counts its runs in a map, and the map.
func counter(t testing.TB, typ ebpf.ProgramType, attach ebpf.AttachType) (*ebpf.Program, *ebpf.Map) {
	t.Helper()
	prog, runs, err := newCounter(hookCase{typ: typ, attach: attach})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close(); runs.Close() })
	return prog, runs
}

// newCounter makes the program of a case: it adds 1 to runs[0], writes its cookie to runs[1] if it is to, and returns what
// lets everything go on.
func newCounter(c hookCase) (*ebpf.Program, *ebpf.Map, error) {
	runs, err := ebpf.NewMap(&ebpf.MapSpec{Name: "runs", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		return nil, nil, err
	}
	var insns asm.Instructions
	insns = append(insns, asm.Mov.Reg(asm.R7, asm.R1))
	insns = append(insns, entry(runs, 0, "no-entry")...)
	insns = append(insns, asm.Mov.Imm(asm.R1, 1), asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0))
	if c.cookie {
		insns = append(insns, asm.Mov.Reg(asm.R1, asm.R7), asm.FnGetAttachCookie.Call(), asm.Mov.Reg(asm.R6, asm.R0))
		insns = append(insns, entry(runs, 1, "no-entry")...)
		insns = append(insns, asm.StoreMem(asm.R0, 0, asm.R6, asm.DWord))
	}
	goOn := int32(1)
	switch c.typ {
	case ebpf.Tracing, ebpf.LSM:
		goOn = 0
	case ebpf.SchedCLS:
		goOn = -1
	}
	insns = append(insns, asm.Mov.Imm(asm.R0, goOn).WithSymbol("no-entry"), asm.Return())
	spec := &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"counter": {
		Name: "counter", Type: c.typ, AttachType: c.attach, AttachTo: loadedFor(c.hook), Instructions: insns, License: "GPL",
	}}}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types, Programs: ebpf.ProgramOptions{LogDisabled: true}})
	if err != nil {
		runs.Close()
		return nil, nil, err
	}
	return loaded.Programs["counter"], runs, nil
}

// types is the kernel's BTF for all tests, as in the daemon.
var types = btf.NewCache()

// loadedFor is what package loader tells the kernel when it loads a program for a hook.
func loadedFor(h volume.Hook) string {
	if t, ok := targetOf(h); ok {
		return t.name
	}
	return ""
}

func entry(m *ebpf.Map, key int64, otherwise string) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, key, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, otherwise),
	}
}

// runsOf reads a counter's map: how often it ran, and its cookie.
func runsOf(t testing.TB, m *ebpf.Map) (runs, cookie uint64) {
	t.Helper()
	for i, v := range []*uint64{&runs, &cookie} {
		if err := m.Lookup(uint32(i), v); err != nil {
			t.Fatal(err)
		}
	}
	return runs, cookie
}

// libc returns the path of the C library that /bin/sh uses.
func libc(t testing.TB) string {
	t.Helper()
	paths, err := filepath.Glob("/lib/*-linux-gnu/libc.so.6")
	if err != nil || len(paths) == 0 {
		t.Fatal("no libc.so.6 below /lib")
	}
	path, err := filepath.EvalSymlinks(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// hookCase is a hook, the program it takes, and what makes it run.
type hookCase struct {
	typ     ebpf.ProgramType
	attach  ebpf.AttachType
	hook    volume.Hook
	cookie  bool   // the hook has testCookie
	since   string // the kernel that has it, where the oldest of the matrix has not
	where   func(testing.TB) place
	trigger func(testing.TB, place)
}

// place is where a hook is.
type place struct {
	here *bpftest.NetNS // where the program is attached; nil is the test's own namespace
	peer *bpftest.NetNS // at the other end of the interface
}

// do calls f where the program is attached.
func (p place) do(f func() error) error {
	if p.here == nil {
		return f()
	}
	return p.here.Do(f)
}

func anywhere(testing.TB) place { return place{} }

func inNetNS(t testing.TB) place { return place{here: bpftest.NewNetNS(t)} }

func onNetkit(t testing.TB) place {
	a, b := bpftest.Netkit(t)
	return place{here: a, peer: b}
}

const testCookie = uint64(0x1122_3344_5566_7788)
