// SPDX-License-Identifier: Apache-2.0

package fuse

import "github.com/cilium/ebpf/asm"

// Counters are how often a member returned each verdict, on one CPU: verdict v is counted at v+1, so that TC's unspec,
// -1, has a place, and all verdicts without one are counted last.
type Counters [16]uint64

const (
	countersSize = 16 * 8
	lastCounter  = 15
)

// Verdict is what Counters counts at an index; ok is false for the last, which counts all others.
func Verdict(index int) (verdict int, ok bool) { return index - 1, index < lastCounter }

// count adds what counts a member's verdict, w0, and keeps it. What is on a CPU is counted by nobody else meanwhile:
// XDP and TC programs run with softirqs off.
func (b *builder) count(m Member) {
	if b.Stats == 0 {
		return
	}
	key := b.keySlot()
	b.add(
		asm.Mov.Reg(asm.R6, asm.R0), // no register of a member is needed any more
		asm.StoreImm(asm.RFP, key, int64(m.Counter), asm.Word),
		asm.LoadMapPtr(asm.R1, b.Stats),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(key)),
		asm.FnMapLookupElem.Call(),
	)
	add := asm.Instructions{
		asm.Mov.Reg32(asm.R1, asm.R6),
		asm.Add.Imm32(asm.R1, 1),
		skip(asm.JLE.Imm32(asm.R1, lastCounter, ""), 1),
		asm.Mov.Imm32(asm.R1, lastCounter),
		asm.LSh.Imm(asm.R1, 3),
		asm.Add.Reg(asm.R0, asm.R1),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	}
	b.add(skip(asm.JEq.Imm(asm.R0, 0, ""), len(add)))
	b.add(add...)
	b.add(asm.Mov.Reg(asm.R0, asm.R6))
}

// skip makes a jump over n instructions of 8 bytes.
func skip(jump asm.Instruction, n int) asm.Instruction {
	jump.Offset = int16(n)
	return jump
}
