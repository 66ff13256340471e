// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// The test binary plays other processes, too: what it is to do is in these variables.
const (
	roleEnv = "BPFVOL_HOOK_ROLE"
	caseEnv = "BPFVOL_HOOK_CASE"
	dirEnv  = "BPFVOL_HOOK_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "connect":
		if c, err := net.Dial("udp4", "127.0.0.1:9"); err == nil {
			c.Close()
		}
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
	prog, runs, err := newCounter(typ, attach, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close(); runs.Close() })
	return prog, runs
}

// newCounter makes a program that adds 1 to runs[0], writes its cookie to runs[1] if it is to, and returns 1.
func newCounter(typ ebpf.ProgramType, attach ebpf.AttachType, cookie bool) (*ebpf.Program, *ebpf.Map, error) {
	runs, err := ebpf.NewMap(&ebpf.MapSpec{Name: "runs", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		return nil, nil, err
	}
	var insns asm.Instructions
	insns = append(insns, asm.Mov.Reg(asm.R7, asm.R1))
	insns = append(insns, entry(runs, 0, "no-entry")...)
	insns = append(insns, asm.Mov.Imm(asm.R1, 1), asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0))
	if cookie {
		insns = append(insns, asm.Mov.Reg(asm.R1, asm.R7), asm.FnGetAttachCookie.Call(), asm.Mov.Reg(asm.R6, asm.R0))
		insns = append(insns, entry(runs, 1, "no-entry")...)
		insns = append(insns, asm.StoreMem(asm.R0, 0, asm.R6, asm.DWord))
	}
	insns = append(insns, asm.Mov.Imm(asm.R0, 1).WithSymbol("no-entry"), asm.Return())
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "counter", Type: typ, AttachType: attach, Instructions: insns, License: "GPL"})
	if err != nil {
		runs.Close()
		return nil, nil, err
	}
	return prog, runs, nil
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
	cookie  bool // the hook has testCookie
	trigger func(t testing.TB)
}

const testCookie = uint64(0x1122_3344_5566_7788)
