// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// newCounter makes a map of two numbers.
func newCounter(name string) (*ebpf.Map, error) {
	return ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
}

// countOne adds one to a number of a map. R0 to R5 are lost.
func countOne(name string, key int64) asm.Instructions {
	done := fmt.Sprintf("counted_%s_%d", name, key)
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, key, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, 0).WithReference(name),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, done),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, 0).WithSymbol(done),
	}
}

func programSpec(typ ebpf.ProgramType, name string, insns asm.Instructions) *ebpf.ProgramSpec {
	attach := ebpf.AttachNone
	if typ == ebpf.XDP {
		attach = ebpf.AttachXDP
	}
	insns[0] = insns[0].WithSymbol(name)
	return &ebpf.ProgramSpec{Name: name, Type: typ, AttachType: attach, License: "GPL", Instructions: insns}
}

// loadProgram loads a program alone, as package loader does.
func loadProgram(spec *ebpf.ProgramSpec, maps map[string]*ebpf.Map) (Program, error) {
	alone := spec.Copy()
	for name, m := range maps {
		if err := alone.Instructions.AssociateMap(name, m); err != nil && !errors.Is(err, asm.ErrUnreferencedSymbol) {
			return Program{}, err
		}
	}
	prog, err := ebpf.NewProgram(alone)
	return Program{Program: prog, Spec: spec, Maps: maps}, err
}

// lingering makes a program that takes its time with every packet, and then does what another does if that is given.
func (w *world) lingering(t testing.TB, d time.Duration, then *Program) Program {
	t.Helper()
	var all map[string]*ebpf.Map
	var tailCall asm.Instructions
	if then != nil {
		all = w.slotted(t, *then).Maps
		tailCall = asm.Instructions{
			asm.FnGetPrandomU32.Call(), // the kernel does not know the index before
			asm.Mov.Reg(asm.R3, asm.R0),
			asm.And.Imm(asm.R3, 1),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, 0).WithReference("next"),
			asm.FnTailCall.Call(),
		}
	}
	body := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R1, 1<<23), // BPF_MAX_LOOPS
		asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R2, Src: asm.PseudoFunc, Constant: -1}.WithReference("wait"),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, -8),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnLoop.Call(),
	}
	result := carriers[w.carrier].pass
	if then != nil {
		result = carriers[w.carrier].drop // the call failed
	}
	body = append(append(body, tailCall...), asm.Mov.Imm(asm.R0, result), asm.Return())
	wait := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R2).WithSymbol("wait"),
		asm.FnKtimeGetNs.Call(),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.DWord),
		asm.Sub.Reg(asm.R0, asm.R1),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.Mov.Imm(asm.R0, 1),
		asm.JGT.Imm(asm.R1, int32(d), "enough"),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return().WithSymbol("enough"),
	}
	integer := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	body[0] = btf.WithFuncMetadata(body[0], &btf.Func{Name: "linger", Linkage: btf.GlobalFunc, Type: &btf.FuncProto{Return: integer}})
	wait[0] = btf.WithFuncMetadata(wait[0], &btf.Func{Name: "wait", Linkage: btf.StaticFunc, Type: &btf.FuncProto{Return: integer}})
	return w.load(t, "linger", append(body, wait...), all)
}

// newProgram makes a program that counts its packets and returns a verdict.
func newProgram(typ ebpf.ProgramType, name string, verdict int32) (Program, *ebpf.Map, error) {
	return newCounting(typ, name, verdict, nil, nil)
}

// newSlotProgram makes one that needs a slot besides: it tail-calls, but nothing is there.
func newSlotProgram(typ ebpf.ProgramType, name string, verdict int32) (Program, *ebpf.Map, error) {
	next, err := ebpf.NewMap(&ebpf.MapSpec{Name: "next", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return Program{}, nil, err
	}
	return newCounting(typ, name, verdict, map[string]*ebpf.Map{"next": next}, asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, 0).WithReference("next"),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
	})
}

func newCounting(typ ebpf.ProgramType, name string, verdict int32, more map[string]*ebpf.Map, then asm.Instructions) (Program, *ebpf.Map, error) {
	packets, err := newCounter("packets")
	if err != nil {
		return Program{}, nil, err
	}
	insns := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, countOne("packets", 0)...)
	insns = append(append(insns, then...), asm.Mov.Imm(asm.R0, verdict), asm.Return())
	all := map[string]*ebpf.Map{"packets": packets}
	maps.Copy(all, more)
	prog, err := loadProgram(programSpec(typ, name, insns), all)
	if err != nil {
		packets.Close()
		return Program{}, nil, err
	}
	return prog, packets, nil
}

// slotted makes a program that only tail-calls another, so that it needs a slot. Where the call fails, it drops.
func (w *world) slotted(t testing.TB, prog Program) Program {
	t.Helper()
	next, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "next", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 2,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: prog.Program}, {Key: uint32(1), Value: prog.Program}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	return w.load(t, "slot", asm.Instructions{
		asm.LoadMapPtr(asm.R2, 0).WithReference("next"),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, carriers[w.carrier].drop),
		asm.Return(),
	}, map[string]*ebpf.Map{"next": next})
}

// load loads a program that is closed at the end of the test.
func (w *world) load(t testing.TB, name string, insns asm.Instructions, maps map[string]*ebpf.Map) Program {
	t.Helper()
	prog, err := loadProgram(programSpec(carriers[w.carrier].typ, name, insns), maps)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

// program makes a program that counts its packets and returns a verdict.
func (w *world) program(t testing.TB, name string, verdict int32) (Program, *ebpf.Map) {
	t.Helper()
	prog, packets, err := newProgram(carriers[w.carrier].typ, name, verdict)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close(); packets.Close() })
	return prog, packets
}

// counter makes a map of two numbers.
func (w *world) counter(t testing.TB, name string) *ebpf.Map {
	t.Helper()
	m, err := newCounter(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// number reads one of the two numbers of a map.
func number(t testing.TB, m *ebpf.Map, key uint32) (n uint64) {
	t.Helper()
	if err := m.Lookup(key, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// stampAt begins a program that wants the byte of a datagram's payload that belongs to a stamp: R7 points to it. Other
// packets pass.
func (w *world) stampAt(stamp int) asm.Instructions {
	c := carriers[w.carrier]
	data, end := int16(0), int16(4) // struct xdp_md
	if c.typ == ebpf.SchedCLS {
		data, end = 76, 80 // struct __sk_buff
	}
	return asm.Instructions{
		asm.LoadMem(asm.R7, asm.R1, data, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, end, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R7),
		asm.Add.Imm(asm.R4, int32(headers+stamp+1)),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.Add.Imm(asm.R7, int32(headers+stamp)),
	}
}

func (w *world) passes() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, carriers[w.carrier].pass).WithSymbol("pass"), asm.Return()}
}

// stamping makes a program that stamps packets.
func (w *world) stamping(t testing.TB, stamp int) Program {
	t.Helper()
	insns := append(w.stampAt(stamp), asm.StoreImm(asm.R7, 0, 1, asm.Byte))
	return w.load(t, "stamp", append(insns, w.passes()...), nil)
}

// checking makes a program that counts the packets it meets, and those of them without the stamp, which it takes off.
func (w *world) checking(t testing.TB, stamp int, seen *ebpf.Map) Program {
	t.Helper()
	insns := append(w.stampAt(stamp),
		asm.LoadMem(asm.R8, asm.R7, 0, asm.Byte),
		asm.StoreImm(asm.R7, 0, 0, asm.Byte))
	insns = append(insns, countOne("seen", 0)...)
	insns = append(insns, asm.JEq.Imm(asm.R8, 1, "pass"))
	insns = append(insns, countOne("seen", 1)...)
	return w.load(t, "check", append(insns, w.passes()...), map[string]*ebpf.Map{"seen": seen})
}
