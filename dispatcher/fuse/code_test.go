// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// What a member's pins keep is all that it takes to build it again.
func TestCodeSurvivesBeingWritten(t *testing.T) {
	c := caller(t, "prog")
	b, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var again Code
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if err := again.SetBytes(b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, &again, cmpopts.IgnoreFields(asm.Instruction{}, "Metadata")); diff != "" {
		t.Errorf("code (-before +after):\n%s", diff)
	}
	if want := map[int]string{0: "prog", 9: "helper"}; !cmp.Equal(want, again.Functions) {
		t.Errorf("functions are %v, want %v", again.Functions, want)
	}
}

func TestSetBytesRefusesWhatDoesNotFit(t *testing.T) {
	load := asm.LoadMapPtr(asm.R1, 1)
	wild := call()
	wild.Constant = 5
	for name, c := range map[string]struct {
		insns     asm.Instructions
		functions map[int]string
		want      string
	}{
		"a map too many":       {asm.Instructions{load, asm.Return()}, map[int]string{0: "prog"}, "loads map 1 of 1"},
		"a call of nothing":    {asm.Instructions{wild, asm.Return()}, map[int]string{0: "prog"}, "instruction 0 calls no function"},
		"no program":           {asm.Instructions{asm.Return()}, nil, "no function at 0"},
		"a function in a load": {asm.Instructions{load, asm.Return()}, map[int]string{0: "prog", 1: "half"}, "function at 1, where no instruction is"},
	} {
		b, err := marshal(c.insns)
		if err != nil {
			t.Fatal(err)
		}
		err = (&Code{Functions: c.functions, Maps: []string{"counts"}}).SetBytes(b)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %q", name, err, c.want)
		}
	}
	if err := new(Code).SetBytes([]byte{1, 2, 3}); err == nil {
		t.Error("three bytes are no error")
	}
}

// What cilium/ebpf finds out only when it loads, or what belongs to one program alone, is left to a slot.
func TestSettleLeavesAloneWhatItCannotTakeApart(t *testing.T) {
	symbol := asm.LoadImm(asm.R1, 0, asm.DWord).WithReference("jiffies")
	config := asm.LoadMapValue(asm.R1, 0, 0)
	throw := asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoKfuncCall, Constant: -1}.WithReference("bpf_throw")
	absent := asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoKfuncCall, Constant: -1}.WithReference("bpfvol_no_such_function")
	for want, ins := range map[string]asm.Instruction{
		"it uses the address of a kernel symbol":                                symbol,
		"it reads configuration variables of the kernel":                        config,
		"it throws exceptions":                                                  throw,
		"it calls a function of a kernel module, or one that this kernel lacks": absent,
	} {
		c, err := Settle(&ebpf.ProgramSpec{Name: "prog", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 2).WithSymbol("prog"), ins, asm.Return(),
		}}, btf.NewCache())
		if err != nil {
			t.Errorf("%s: %v", want, err)
		} else if c.Alone != want || len(c.Instructions) > 0 {
			t.Errorf("alone is %q with %d instructions, want %q", c.Alone, len(c.Instructions), want)
		}
	}
}

// Pins can be written by root alone, but a mistake there must not be one here.
func FuzzSetBytes(f *testing.F) {
	c := caller(f, "prog")
	b, err := c.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, 9)
	f.Add(b[:len(b)/2], 0)
	f.Fuzz(func(t *testing.T, b []byte, function int) {
		c := &Code{Name: "prog", Type: ebpf.XDP, License: "GPL", Maps: []string{"counts"}, Functions: map[int]string{0: "prog", function: "helper"}}
		if c.SetBytes(b) != nil {
			return
		}
		again, err := c.Bytes()
		if err != nil {
			return // bytes that cilium/ebpf reads but does not write
		}
		if len(again) != len(b) {
			t.Errorf("%d bytes became %d", len(b), len(again))
		}
		Plan([]Candidate{{Code: c}, {Code: c}}, PlanOptions{})
		c.Spec([]int{3})
		set := Set{Type: ebpf.XDP, Name: "set", Members: []Member{
			{Code: c, Descriptors: []int{3}, Proceed: []int32{2}, Slot: Fused}, {Code: c, Descriptors: []int{4}, Slot: Fused},
		}}
		if _, err := set.Program(); err != nil {
			t.Log(err)
		}
	})
}
