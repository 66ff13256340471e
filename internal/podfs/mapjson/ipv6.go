// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf/asm"
)

// functionIPv6 prints the IPv6 address at R2 to the seq_file R1 as RFC 5952 says: the kernel's %pI6 prints every zero,
// and bpf_seq_printf takes no %pI6c. It returns what bpf_seq_printf does.
const functionIPv6 = "ipv6"

// Stack frame of the function, which is on top of the caller's.
const frameGroups = -8 * 8

func (p *program) functionIPv6() {
	const seq, addr, zeros, part = asm.R6, asm.R7, asm.R8, asm.R9
	p.mark(functionIPv6)
	p.emit(
		asm.Mov.Reg(seq, asm.R1),
		asm.Mov.Reg(addr, asm.R2),
		asm.Mov.Imm(zeros, 0), // bit i: group i is zero
	)
	for i := range 8 {
		p.emit(
			asm.LoadMem(asm.R1, addr, int16(2*i), asm.Half),
			asm.HostTo(asm.BE, asm.R1, asm.Half),
			asm.StoreMem(asm.R10, int16(frameGroups+8*i), asm.R1, asm.DWord),
			asm.Sub.Imm(asm.R1, 1), // borrows only from 0
			asm.RSh.Imm(asm.R1, 63),
			asm.LSh.Imm(asm.R1, int32(i)),
			asm.Or.Reg(zeros, asm.R1),
		)
	}

	// ::ffff:10.0.0.1
	const none = "not_mapped"
	p.emit(
		asm.Mov.Reg(asm.R1, zeros),
		asm.And.Imm(asm.R1, 0x1f),
		asm.JNE.Imm(asm.R1, 0x1f, none),
		asm.LoadMem(asm.R1, asm.R10, frameGroups+8*5, asm.DWord),
		asm.JNE.Imm(asm.R1, 0xffff, none),
		asm.Mov.Reg(asm.R1, addr),
		asm.Add.Imm(asm.R1, 12),
		asm.StoreMem(asm.R10, frameGroups, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R1, seq),
	)
	p.printf("::ffff:%pI4", asm.R10, frameGroups, 1)
	p.emit(asm.Return())

	// How many groups to print before and after the run of zeros that is left out, by the zero groups.
	p.mark(none)
	const whole = 0xff
	parts := make([]byte, 256)
	for mask := range parts {
		parts[mask] = whole
		if start, n := longestRun(mask); n > 1 {
			parts[mask] = byte(start<<4 | 8 - start - n)
		}
	}
	p.emit(asm.And.Imm(zeros, 0xff))
	p.address(asm.R2, p.intern(string(parts)))
	p.emit(
		asm.Add.Reg(asm.R2, zeros),
		asm.LoadMem(part, asm.R2, 0, asm.Byte),
		asm.Mov.Reg(asm.R1, seq),
		asm.JNE.Imm(part, whole, "before_0"),
	)
	p.printf(groups(8), asm.R10, frameGroups, 8)
	p.emit(asm.Return())

	for n := range 7 {
		p.mark(fmt.Sprintf("before_%d", n))
		p.emit(
			asm.Mov.Reg(asm.R2, part),
			asm.RSh.Imm(asm.R2, 4),
			asm.JNE.Imm(asm.R2, int32(n), fmt.Sprintf("before_%d", n+1)),
			asm.Mov.Reg(asm.R1, seq),
		)
		if n > 0 {
			p.printf(groups(n)+"::", asm.R10, frameGroups, n)
		} else {
			p.address(asm.R2, p.intern("::"))
			p.emit(asm.Mov.Imm(asm.R3, 2), asm.FnSeqWrite.Call())
		}
		p.emit(asm.JSLT.Imm(asm.R0, 0, "return_ipv6"), asm.Ja.Label("after_1"))
	}
	p.mark("before_7")
	p.emit(asm.Ja.Label("after_7"))

	for n := 1; n < 7; n++ {
		p.mark(fmt.Sprintf("after_%d", n))
		p.emit(
			asm.Mov.Reg(asm.R2, part),
			asm.And.Imm(asm.R2, 0xf),
			asm.JNE.Imm(asm.R2, int32(n), fmt.Sprintf("after_%d", n+1)),
			asm.Mov.Reg(asm.R1, seq),
		)
		p.printf(groups(n), asm.R10, frameGroups+8*(8-n), n)
		p.emit(asm.Return())
	}
	p.mark("after_7")
	p.emit(asm.Mov.Imm(asm.R0, 0))
	p.mark("return_ipv6")
	p.emit(asm.Return())
}

// longestRun returns the first of the longest runs of bits in mask.
func longestRun(mask int) (start, n int) {
	for i := range 8 {
		length := 0
		for i+length < 8 && mask>>(i+length)&1 == 1 {
			length++
		}
		if length > n {
			start, n = i, length
		}
	}
	return start, n
}

func groups(n int) string { return strings.TrimSuffix(strings.Repeat("%llx:", n), ":") }
