// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// settle makes code of hand-written instructions, of which the first bears the program's name.
func settle(t testing.TB, insns asm.Instructions) *Code {
	t.Helper()
	spec := &ebpf.ProgramSpec{Name: insns[0].Symbol(), Type: ebpf.XDP, License: "GPL", Instructions: insns}
	c, err := Settle(spec, btf.NewCache())
	if err != nil {
		t.Fatal(err)
	}
	if c.Alone != "" {
		t.Fatalf("%s: alone: %s", c.Name, c.Alone)
	}
	return c
}

// caller keeps a word at fp-24, calls a subprogram of 8 bytes of stack, and has two exits and a map.
func caller(t testing.TB, name string) *Code {
	return settle(t, asm.Instructions{
		asm.Mov.Imm(asm.R6, 1).WithSymbol(name),
		asm.StoreMem(asm.RFP, -24, asm.R1, asm.DWord),
		asm.JEq.Imm(asm.R6, 0, "late"),
		asm.LoadMapPtr(asm.R1, 0).WithReference("counts"),
		asm.Call.Label("helper"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("late"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("helper"),
		asm.StoreImm(asm.RFP, -8, 0, asm.Word),
		asm.Return(),
	})
}

// What a program looks like: the order of everything, and where it leads.
func TestProgramIsTheMembersOneAfterAnother(t *testing.T) {
	set := Set{Type: ebpf.XDP, Name: "bpfvol_xdp", Done: 2, Slots: 70, Members: []Member{
		{Code: caller(t, "first"), Descriptors: []int{51}, Proceed: []int32{2}, Slot: Fused},
		{Code: settle(t, asm.Instructions{asm.Mov.Imm(asm.R0, 2).WithSymbol("tail"), asm.Return()}), Proceed: []int32{2, 3}, Slot: 0},
		{Code: caller(t, "last"), Descriptors: []int{52}, Slot: Fused},
	}}
	spec, err := set.Program()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	at := 0
	for i := range spec.Instructions {
		ins := &spec.Instructions[i]
		if fn := btf.FuncMetadata(ins); fn != nil {
			fmt.Fprintf(&got, "%s:\n", fn.Name)
		}
		fmt.Fprintf(&got, "%3d %v", at, *ins)
		if to, ok := target(ins, at); ok && ins.IsFunctionReference() {
			fmt.Fprintf(&got, " to %d", to)
		} else if ins.OpCode.Class().IsJump() && ins.OpCode.JumpOp() != asm.Exit && ins.OpCode.JumpOp() != asm.Call {
			fmt.Fprintf(&got, " to %d", at+1+int(ins.Offset))
		}
		got.WriteByte('\n')
		at += width(ins)
	}
	want := `bpfvol_xdp:
  0 StXMemDW dst: rfp src: r1 off: -32 imm: 0
  1 MovImm dst: r6 imm: 1
  2 StXMemDW dst: rfp src: r1 off: -24 imm: 0
  3 JEqImm dst: r6 off: 4 imm: 0 to 8
  4 LoadMapPtr dst: r1 fd: 51
  6 Call 21 to 28
  7 Ja off: 2 to 10
  8 MovImm dst: r0 imm: 1
  9 Ja off: 0 to 10
 10 JEq32Imm dst: r0 off: 1 imm: 2 to 12
 11 Exit
 12 LdXMemDW dst: r1 src: rfp off: -32 imm: 0
 13 Call 17 to 31
 14 JEq32Imm dst: r0 off: 2 imm: 2 to 17
 15 JEq32Imm dst: r0 off: 1 imm: 3 to 17
 16 Exit
 17 LdXMemDW dst: r1 src: rfp off: -32 imm: 0
 18 MovImm dst: r6 imm: 1
 19 StXMemDW dst: rfp src: r1 off: -24 imm: 0
 20 JEqImm dst: r6 off: 4 imm: 0 to 25
 21 LoadMapPtr dst: r1 fd: 52
 23 Call 13 to 37
 24 Ja off: 2 to 27
 25 MovImm dst: r0 imm: 1
 26 Ja off: 0 to 27
 27 Exit
helper:
 28 MovImm dst: r0 imm: 2
 29 StMemW dst: rfp src: r0 off: -8 imm: 0
 30 Exit
tail:
 31 LoadMapPtr dst: r2 fd: 70
 33 MovImm dst: r3 imm: 0
 34 Call FnTailCall
 35 MovImm dst: r0 imm: 0
 36 Exit
helper:
 37 MovImm dst: r0 imm: 2
 38 StMemW dst: rfp src: r0 off: -8 imm: 0
 39 Exit
`
	if got.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}
}
