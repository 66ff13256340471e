// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"strconv"

	"github.com/cilium/ebpf/asm"
)

// print prints a node that lies at an offset of the base.
func (p *program) print(n *node, at int) {
	switch n.kind {
	case kindUint, kindInt, kindBool, kindPointer:
		p.scalar(n, at)
	case kindEnum:
		p.enumName(n, at)
	case kindIPv4:
		// The verb needs the address of the address. What is alphanumeric after %pI4 would be swallowed; a quote is not.
		p.room(1)
		p.text(`"`)
		p.emit(asm.Mov.Reg(asm.R1, p.base), asm.Add.Imm(asm.R1, int32(at)))
		p.arg("%pI4", asm.R1)
		p.text(`"`)
	case kindIPv6:
		p.text(`"`)
		p.flush()
		p.emit(asm.Mov.Reg(asm.R1, regSeq), asm.Mov.Reg(asm.R2, p.base), asm.Add.Imm(asm.R2, int32(at)))
		p.emit(asm.Call.Label(functionIPv6), asm.JSLT.Imm(asm.R0, 0, "failed"))
		p.useIPv6 = true
		p.text(`"`)
	case kindText:
		p.charArray(n.size, at)
	case kindObject:
		p.text("{")
		for i, f := range n.fields {
			if i > 0 {
				p.text(",")
			}
			p.text(f.name + ":")
			p.print(f.node, at+f.off)
		}
		p.text("}")
	case kindArray:
		p.text("[")
		p.array(n, at)
		p.text("]")
	default:
		p.hex(n.size, at)
	}
}

func (p *program) scalar(n *node, at int) {
	p.room(1)
	p.load(n, at)
	switch n.kind {
	case kindUint:
		p.arg("%llu", asm.R1)
	case kindInt:
		p.arg("%lld", asm.R1)
	case kindPointer:
		p.text(`"0x`)
		p.arg("%llx", asm.R1)
		p.text(`"`)
	case kindBool:
		// Without a branch: two paths per bool would multiply. -x|x has its highest bit set for any x but 0.
		const words = "false\x00\x00\x00true"
		p.emit(
			asm.Mov.Imm(asm.R2, 0),
			asm.Sub.Reg(asm.R2, asm.R1),
			asm.Or.Reg(asm.R1, asm.R2),
			asm.RSh.Imm(asm.R1, 63),
			asm.LSh.Imm(asm.R1, 3),
		)
		p.address(asm.R2, p.intern(words))
		p.emit(asm.Add.Reg(asm.R2, asm.R1))
		p.arg("%s", asm.R2)
	}
}

// load loads an integer into R1, extended to 64 bits.
func (p *program) load(n *node, at int) {
	if n.width > 0 {
		p.loadBits(n, at)
		return
	}
	p.loadBytes(n.size, at)
	switch {
	case n.swap:
		p.emit(asm.HostTo(asm.BE, asm.R1, sizeOf(n.size)))
	case n.signed() && n.size < 8:
		shift := int32(64 - 8*n.size)
		p.emit(asm.LSh.Imm(asm.R1, shift), asm.ArSh.Imm(asm.R1, shift))
	}
}

func (p *program) loadBits(n *node, at int) {
	p.loadBytes(min(n.size, 8), at)
	bits := n.shift + n.width // from bit 0 of R1
	if n.size > 8 {
		p.emit(
			asm.RSh.Imm(asm.R1, int32(n.shift)),
			asm.LoadMem(asm.R2, p.base, int16(at+8), asm.Byte),
			asm.LSh.Imm(asm.R2, int32(64-n.shift)),
			asm.Or.Reg(asm.R1, asm.R2),
		)
		bits = n.width
	}
	p.emit(asm.LSh.Imm(asm.R1, int32(64-bits)))
	if n.signed() {
		p.emit(asm.ArSh.Imm(asm.R1, int32(64-n.width)))
	} else {
		p.emit(asm.RSh.Imm(asm.R1, int32(64-n.width)))
	}
}

func sizeOf(n int) asm.Size {
	switch n {
	case 1:
		return asm.Byte
	case 2:
		return asm.Half
	case 4:
		return asm.Word
	}
	return asm.DWord
}

// loadBytes loads 1 to 8 bytes into R1, the first as the lowest. It reads no byte more: the verifier knows the size.
// It uses R2.
func (p *program) loadBytes(n, at int) {
	dst, done := asm.R1, 0
	for _, size := range []int{8, 4, 2, 1} {
		if n-done < size {
			continue
		}
		p.emit(asm.LoadMem(dst, p.base, int16(at+done), sizeOf(size)))
		if done > 0 {
			p.emit(asm.LSh.Imm(asm.R2, int32(8*done)), asm.Or.Reg(asm.R1, asm.R2))
		}
		dst, done = asm.R2, done+size
	}
}

func (p *program) enumName(n *node, at int) {
	p.room(1)
	p.load(n, at)
	if len(n.enum.values) == 0 {
		p.arg(n.enum.verb(), asm.R1)
		return
	}
	slot := p.slot()
	p.emit(asm.StoreMem(asm.R10, slot, asm.R1, asm.DWord))
	unnamed, end := p.newLabel("unnamed"), p.newLabel("end")
	before := p.pending

	if n.enum.width > 0 {
		p.emit(asm.LoadImm(asm.R2, int64(n.enum.lowest), asm.DWord), asm.Sub.Reg(asm.R1, asm.R2))
		p.emit(asm.JGE.Imm(asm.R1, int32(n.enum.width), unnamed), asm.LSh.Imm(asm.R1, 2))
		p.address(asm.R2, p.table(n.enum))
		p.emit(
			asm.Add.Reg(asm.R2, asm.R1),
			asm.LoadMem(asm.R1, asm.R2, 0, asm.Word),
			asm.JEq.Imm(asm.R1, 0, unnamed),
			asm.And.Imm(asm.R1, maxPool-1),
		)
		p.address(asm.R2, 0)
		p.emit(asm.Add.Reg(asm.R2, asm.R1), asm.StoreMem(asm.R10, slot, asm.R2, asm.DWord))
	} else {
		named := p.newLabel("named")
		for _, v := range n.enum.values {
			next := p.newLabel("next")
			p.emit(asm.LoadImm(asm.R3, int64(v), asm.DWord), asm.JNE.Reg(asm.R1, asm.R3, next))
			p.address(asm.R2, p.intern(n.enum.names[v]))
			p.emit(asm.StoreMem(asm.R10, slot, asm.R2, asm.DWord), asm.Ja.Label(named))
			p.mark(next)
		}
		p.emit(asm.Ja.Label(unnamed))
		p.mark(named)
	}
	p.verb("%s")
	p.flush()
	p.emit(asm.Ja.Label(end))

	p.mark(unnamed)
	p.pending = before
	p.verb(n.enum.verb())
	p.flush()
	p.mark(end)
}

// verb prints a value without a name.
func (e *enum) verb() string {
	if e.signed {
		return "%lld"
	}
	return "%llu"
}

// table returns the offset of a table of 32-bit offsets of names, 0 for none.
func (p *program) table(e *enum) uint32 {
	offset, ok := p.enums[e]
	if ok {
		return offset
	}
	table := make([]uint32, e.width)
	for v, name := range e.names {
		table[v-e.lowest] = p.intern(name)
	}
	for len(p.pool)%4 != 0 {
		p.pool = append(p.pool, 0)
	}
	offset = uint32(len(p.pool))
	p.enums[e] = offset
	for _, name := range table {
		p.pool = append(p.pool, byte(name), byte(name>>8), byte(name>>16), byte(name>>24))
	}
	return offset
}

// hex prints bytes in memory order, eight to an argument.
func (p *program) hex(size, at int) {
	p.text(`"0x`)
	words := size / 8
	if words > maxArgs {
		rounds := words / maxArgs
		p.loop(rounds, 8*maxArgs, func() {
			for i := range maxArgs {
				p.hexWord(8, at+8*i)
			}
		})
		words -= rounds * maxArgs
		defer p.rewind(rounds * maxArgs * 8)
	}
	for range words {
		p.hexWord(8, at)
		at += 8
	}
	if rest := size % 8; rest > 0 {
		p.hexWord(rest, at)
	}
	p.text(`"`)
}

func (p *program) hexWord(n, at int) {
	p.room(1)
	p.loadBytes(n, at)
	p.emit(asm.HostTo(asm.BE, asm.R1, asm.DWord))
	if n < 8 {
		p.emit(asm.RSh.Imm(asm.R1, int32(64-8*n)))
	}
	p.arg("%0"+strconv.Itoa(2*n)+"llx", asm.R1)
}

// array prints elements, in a loop where they are many. A loop prints as many elements as one call takes; the last ones,
// which have no comma, come after it.
func (p *program) array(n *node, at int) {
	group, simple := 1, n.elem.kind <= kindPointer && n.elem.kind != kindEnum && n.elem.kind != kindHex || n.elem.kind == kindIPv4
	if simple {
		group = maxArgs
	}
	rest := n.n
	if rounds := (n.n - 1) / group; rounds > 1 {
		rest -= rounds * group
		p.loop(rounds, group*n.stride, func() {
			for i := range group {
				p.print(n.elem, at+i*n.stride)
				p.text(",")
			}
		})
		defer p.rewind(rounds * group * n.stride)
	}
	for i := range rest {
		if i > 0 {
			p.text(",")
		}
		p.print(n.elem, at+i*n.stride)
	}
}

// loop runs a body several times and moves the base on by step bytes each time; rewind moves it back.
// The verifier walks each round with a constant offset, which is all that it allows into a map element.
func (p *program) loop(rounds, step int, body func()) {
	p.flush()
	counter := int16(frameLoops + 16*p.loops)
	p.loops++
	again := p.newLabel("again")
	p.emit(asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.R10, counter, asm.R1, asm.DWord))
	p.mark(again)
	body()
	p.flush()
	p.emit(
		asm.Add.Imm(p.base, int32(step)),
		asm.LoadMem(asm.R1, asm.R10, counter, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R10, counter, asm.R1, asm.DWord),
		asm.JLT.Imm(asm.R1, int32(rounds), again),
	)
	p.loops--
}

func (p *program) rewind(n int) { p.emit(asm.Sub.Imm(p.base, int32(n))) }
