// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"fmt"
	"math"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Set is what runs at a point, in order.
type Set struct {
	Type    ebpf.ProgramType // XDP or SchedCLS
	Name    string           // of the program, at most 15 bytes
	Members []Member
	// Done is the result where the last member that ran returned a verdict of its Proceed; Failed where a slot could not
	// be called, which happens when members' own tail calls have used up the kernel's limit: then nothing is let through.
	Done, Failed int32
	Frame        int  // bytes of stack that members may use at the least; more if one of them does
	Slots        int  // descriptor of the program array; members with a Slot need it
	Stats        int  // descriptor of the per-CPU array of Counters, or 0: nothing is counted
	LongJumps    bool // the kernel has jumps over more than 32767 instructions (Linux 6.6)
}

// Member is one program of a set.
type Member struct {
	*Code
	Descriptors []int   // of Code.Maps
	Proceed     []int32 // verdicts after which the next member runs; none only of the last member
	Slot        int     // index in the program array, or Fused
	Counter     int     // index in the array of counters
}

// Fused is the slot of a member whose instructions are part of the program.
const Fused = -1

// Limits of the kernel.
const (
	MaxSlots     = 32      // one less than MAX_TAIL_CALL_CNT (include/linux/bpf.h): the kernel stops at 33
	MaxMaps      = 64      // MAX_USED_MAPS (include/linux/bpf_verifier.h)
	MaxFunctions = 256     // BPF_MAX_SUBPROGS, with the program's own
	MaxVerified  = 1000000 // BPF_COMPLEXITY_LIMIT_INSNS
	maxStack     = 512     // MAX_BPF_STACK
	// maxStackAboveTailCall bounds what is on the stack where a function is called that tail-calls
	// (check_max_stack_depth of kernel/bpf/verifier.c).
	maxStackAboveTailCall = 255
)

// Program puts the set together:
//
//	    *(u64 *)(fp - ctx) = r1            below the deepest frame of a member
//	    <member 0>                         its exits jump to its end
//	    if w0 == <verdict of its proceedOn> goto next
//	    exit
//	next:
//	    r1 = *(u64 *)(fp - ctx)
//	    <member 1>
//	    ...
//	    r0 = Done
//	    exit
//	    <subprograms of the members, and a slot function for each that is tail-called>
//
// The names and types in its BTF are what tracing tools attach by.
func (s Set) Program() (*ebpf.ProgramSpec, error) {
	for i, m := range s.Members {
		if len(m.Proceed) == 0 && i < len(s.Members)-1 {
			return nil, fmt.Errorf("program %.64q: nothing would run after it", m.Name) // and the verifier refuses such code
		}
	}
	if len(s.Members) == 0 {
		return nil, fmt.Errorf("a set of no members")
	}
	b := builder{Set: s, labels: map[label]int{}}
	b.main()
	for i := range s.Members {
		b.functions(i)
	}
	if err := b.link(); err != nil {
		return nil, err
	}
	return &ebpf.ProgramSpec{
		Name: s.Name, Type: s.Type, AttachType: attachType(s.Type), License: s.license(), Flags: s.Flags(), Instructions: b.insns,
	}, nil
}

// license is that of the fused members. They are all GPL-compatible or none is, and a set of slots has no code of others.
func (s Set) license() string {
	for _, m := range s.Members {
		if m.Slot == Fused && !GPLCompatible(m.License) {
			return m.License
		}
	}
	return "GPL"
}

// xdpHasFrags is BPF_F_XDP_HAS_FRAGS (include/uapi/linux/bpf.h).
const xdpHasFrags = 1 << 5

// Flags are those that all members share: packets in fragments come only if every member can take them.
func (s Set) Flags() uint32 {
	flags := uint32(math.MaxUint32)
	for _, m := range s.Members {
		flags &= m.Flags
	}
	return flags
}

// label is a place in the program: the start of a function of a member, the end of a member, or where the next begins.
type label struct {
	member int
	what   string
	at     int // of a function: where it begins in the member's code
}

type builder struct {
	Set
	insns  asm.Instructions
	at     int // units of 8 bytes in insns
	labels map[label]int
	open   []reference
}

// reference is an instruction that leads to a label.
type reference struct {
	index, at int
	to        label
}

func (b *builder) add(insns ...asm.Instruction) {
	for _, ins := range insns {
		b.insns = append(b.insns, ins)
		b.at += width(&ins)
	}
}

// jump adds an instruction that leads to a label.
func (b *builder) jump(ins asm.Instruction, to label) {
	b.open = append(b.open, reference{len(b.insns), b.at, to})
	b.add(ins)
}

func (b *builder) here(l label) { b.labels[l] = b.at }

// ctxSlot is where the context is kept, from the frame pointer; 0 if only the first member needs it.
func (b *builder) ctxSlot() int16 {
	if len(b.Members) == 1 {
		return 0
	}
	return int16(-(b.frame() + 8))
}

// keySlot is where the key of a counter stands.
func (b *builder) keySlot() int16 { return int16(-(b.frame() + 16)) }

// frame is the deepest frame of a fused member, in whole words.
func (b *builder) frame() int {
	depth := b.Frame
	for _, m := range b.Members {
		if m.Slot == Fused {
			depth = max(depth, m.Shape().Frame)
		}
	}
	return (depth + 7) &^ 7
}

func (b *builder) main() {
	slot := b.ctxSlot()
	if slot != 0 {
		b.add(asm.StoreMem(asm.RFP, slot, asm.R1, asm.DWord))
	}
	for i, m := range b.Members {
		if i > 0 {
			b.add(asm.LoadMem(asm.R1, asm.RFP, slot, asm.DWord))
		}
		if m.Slot == Fused {
			b.body(i)
		} else {
			b.jump(call(), label{member: i, what: "slot"})
		}
		b.here(label{member: i, what: "end"})
		b.count(m)
		for _, verdict := range m.Proceed {
			b.jump(asm.JEq.Imm32(asm.R0, verdict, ""), label{member: i, what: "next"})
		}
		b.add(asm.Return())
		b.here(label{member: i, what: "next"})
	}
	if last := b.Members[len(b.Members)-1]; len(last.Proceed) > 0 {
		b.add(asm.Mov.Imm(asm.R0, b.Done), asm.Return())
	}
	b.insns[0] = btf.WithFuncMetadata(b.insns[0], entryType(b.Type, b.Name))
}

// body adds a member's own function, which ends with its end. Its jumps stay as they are: an exit and the jump that
// takes its place are of one length.
func (b *builder) body(i int) {
	m := b.Members[i]
	at := 0
	for _, ins := range m.Instructions {
		if at > 0 && m.Functions[at] != "" {
			return
		}
		if isExit(&ins) {
			b.jump(asm.Ja.Label(""), label{member: i, what: "end"})
		} else {
			b.copy(i, ins, at)
		}
		at += width(&ins)
	}
}

// functions adds a member's subprograms, or the function that calls its slot.
func (b *builder) functions(i int) {
	m := b.Members[i]
	if m.Slot != Fused {
		b.here(label{member: i, what: "slot"})
		// A global function: of a static one, the verifier of Linux 6.1 thinks that it always returns Failed, since no
		// tail call comes back, and removes what is done with other verdicts.
		b.add(
			btf.WithFuncMetadata(asm.LoadMapPtr(asm.R2, b.Slots), entryType(b.Type, m.Functions[0])),
			asm.Mov.Imm(asm.R3, int32(m.Slot)),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, b.Failed),
			asm.Return(),
		)
		return
	}
	at, inMain := 0, true
	for _, ins := range m.Instructions {
		name := m.Functions[at]
		inMain = inMain && (at == 0 || name == "")
		if !inMain {
			if name != "" {
				b.here(label{member: i, what: "function", at: at})
				ins = btf.WithFuncMetadata(ins, subprogramType(name))
			}
			b.copy(i, ins, at)
		}
		at += width(&ins)
	}
}

// copy adds an instruction of a member that stands at a place in the member's code.
func (b *builder) copy(i int, ins asm.Instruction, at int) {
	m := b.Members[i]
	switch {
	case ins.IsLoadFromMap():
		setMap(&ins, uint32(m.Descriptors[mapIndex(&ins)]))
	case ins.IsFunctionReference():
		to, _ := target(&ins, at)
		b.jump(ins, label{member: i, what: "function", at: to})
		return
	}
	b.add(ins)
}

// link sets the distances of everything that leads to a label.
func (b *builder) link() error {
	for _, r := range b.open {
		ins := &b.insns[r.index]
		to, ok := b.labels[r.to]
		if !ok {
			return fmt.Errorf("program %.64q: no function at %d", b.Members[r.to.member].Name, r.to.at)
		}
		if ins.IsFunctionReference() {
			setTarget(ins, r.at, to)
			continue
		}
		distance := to - r.at - 1
		switch {
		case distance <= math.MaxInt16:
			ins.Offset = int16(distance)
		case ins.OpCode.JumpOp() == asm.Ja && b.LongJumps:
			*ins = longJump(distance)
		default:
			return fmt.Errorf("program %.64q: its end is %d instructions away, too far for a jump", b.Members[r.to.member].Name, distance)
		}
	}
	return nil
}

func call() asm.Instruction {
	return asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoCall}
}

// longJump is a jump whose distance has 32 bits (gotol of BPF's instruction set 4).
func longJump(distance int) asm.Instruction {
	return asm.Instruction{OpCode: asm.OpCode(asm.Jump32Class).SetJumpOp(asm.Ja), Constant: int64(distance)}
}

func isExit(ins *asm.Instruction) bool {
	return ins.OpCode.Class() == asm.JumpClass && ins.OpCode.JumpOp() == asm.Exit
}

// Types of BTF, as far as the kernel looks at them.
var (
	intType  = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	contexts = map[ebpf.ProgramType]*btf.Struct{
		ebpf.XDP:      {Name: "xdp_md"},
		ebpf.SchedCLS: {Name: "__sk_buff"},
	}
)

// entryType is a function that takes the program's context. The type of the parameter is what lets tracing tools attach
// to it, and its global linkage what lets freplace.
func entryType(t ebpf.ProgramType, name string) *btf.Func {
	return &btf.Func{Name: name, Linkage: btf.GlobalFunc, Type: &btf.FuncProto{
		Return: intType, Params: []btf.FuncParam{{Name: "ctx", Type: &btf.Pointer{Target: contexts[t]}}},
	}}
}

// subprogramType is a function of a member. It is static, whatever it was: the verifier then follows calls into it, and
// does not ask for the types of its parameters.
func subprogramType(name string) *btf.Func {
	return &btf.Func{Name: name, Linkage: btf.StaticFunc, Type: &btf.FuncProto{Return: intType}}
}

// gplCompatible are the licenses that the kernel takes for GPL-compatible (include/linux/license.h).
var gplCompatible = []string{"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"}

// GPLCompatible reports whether the kernel lets a program of this license call helpers that are GPL-only.
func GPLCompatible(license string) bool { return slices.Contains(gplCompatible, license) }
