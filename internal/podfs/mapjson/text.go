// SPDX-License-Identifier: Apache-2.0

package mapjson

import "github.com/cilium/ebpf/asm"

// charArray prints a char array as text or, if a byte of the text needs an escape, in hex.
//
// It looks at eight bytes at once, without a branch per byte: the verifier and the reader would pay for each. A map's
// bytes change while they are printed, so what is printed as text is the copy that was checked.
func (p *program) charArray(size, at int) {
	switch {
	case size == 0:
		p.text(`""`)
	case size <= maxShort:
		p.shortText(size, at)
	default:
		p.longText(size, at)
	}
}

// shortText copies the text to the stack, up to its end, and prints it by one %s.
func (p *program) shortText(size, at int) {
	p.room(1)
	stop, text, hex, end := p.newLabel("stop"), p.newLabel("text"), p.newLabel("hex"), p.newLabel("end")
	for done := 0; done < size; done += 8 {
		p.loadBytes(min(8, size-done), at+done)
		p.clean(frameText + done)
		p.emit(asm.JNE.Imm(asm.R0, 0, stop))
	}
	p.emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.R10, int16(frameText+(size+7)/8*8), asm.R1, asm.DWord),
		asm.Ja.Label(text),
	)
	p.mark(stop)
	p.stopped(hex)
	before := p.pending
	p.mark(text)
	p.emit(asm.Mov.Reg(asm.R1, asm.R10), asm.Add.Imm(asm.R1, frameText))
	p.text(`"`)
	p.arg("%s", asm.R1)
	p.text(`"`)
	p.flush()
	p.emit(asm.Ja.Label(end))

	p.mark(hex)
	p.pending = before
	p.hex(size, at)
	p.flush()
	p.mark(end)
}

// longText checks the whole text and then prints eight bytes at a time. Should a byte that needs an escape appear
// between the two, the text ends before it.
func (p *program) longText(size, at int) {
	stop, text, hex, printed, end := p.newLabel("stop"), p.newLabel("text"), p.newLabel("hex"), p.newLabel("printed"), p.newLabel("end")
	words, rest := size/8, size%8
	p.flush()
	saved := int16(frameLoops + 16*p.loops + 8)
	p.emit(asm.StoreMem(asm.R10, saved, p.base, asm.DWord))
	restore := asm.LoadMem(p.base, asm.R10, saved, asm.DWord)

	p.loop(words, 8, func() {
		p.loadBytes(8, at)
		p.clean(frameText)
		p.emit(asm.JNE.Imm(asm.R0, 0, stop))
	})
	if rest > 0 {
		p.loadBytes(rest, at)
		p.clean(frameText)
		p.emit(asm.JNE.Imm(asm.R0, 0, stop))
	}
	p.emit(asm.Ja.Label(text))
	p.mark(stop)
	p.stopped(hex)

	p.mark(text)
	p.emit(restore)
	p.text(`"`)
	piece := func(n int) {
		p.room(1)
		p.loadBytes(n, at)
		p.clean(frameText)
		p.emit(
			asm.Mov.Reg(asm.R7, asm.R0),
			asm.Mov.Imm(asm.R1, 0),
			asm.StoreMem(asm.R10, frameText+8, asm.R1, asm.DWord),
			asm.Mov.Reg(asm.R1, asm.R10),
			asm.Add.Imm(asm.R1, frameText),
		)
		p.arg("%s", asm.R1)
		p.flush()
		p.emit(asm.JNE.Imm(asm.R7, 0, printed))
	}
	p.loop(words, 8, func() { piece(8) })
	if rest > 0 {
		piece(rest)
	}
	p.mark(printed)
	p.emit(restore)
	p.text(`"`)
	p.flush()
	p.emit(asm.Ja.Label(end))

	p.mark(hex)
	p.emit(restore)
	p.hex(size, at)
	p.flush()
	p.mark(end)
}

// Each byte of a word, for arithmetic on eight at once. No sum below carries into the next byte.
const (
	lowBits  = 0x7f7f7f7f7f7f7f7f
	highBits = -0x7f7f7f7f7f7f7f80 // 0x80 in each
	ones     = 0x0101010101010101
	spaces   = 0x6060606060606060 // 0x80 - ' '
	quotes   = 0x2222222222222222
	slashes  = 0x5c5c5c5c5c5c5c5c
)

// clean looks for the first byte of R1 that is not to be printed as it is, NUL among them. It sets that byte's highest
// bit in R0, or R0 to 0, and stores the bytes before it, followed by NULs, in the frame. It keeps R1.
func (p *program) clean(frame int) {
	p.emit(
		asm.LoadImm(asm.R5, lowBits, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R1),
		asm.And.Reg(asm.R2, asm.R5),

		asm.LoadImm(asm.R3, spaces, asm.DWord), // not below ' '
		asm.Add.Reg(asm.R3, asm.R2),

		asm.LoadImm(asm.R0, ones, asm.DWord), // not DEL
		asm.Add.Reg(asm.R0, asm.R2),
		asm.Xor.Imm(asm.R0, -1),
		asm.And.Reg(asm.R3, asm.R0),
	)
	for _, c := range []int64{quotes, slashes} {
		p.emit(
			asm.LoadImm(asm.R0, c, asm.DWord),
			asm.Xor.Reg(asm.R0, asm.R2),
			asm.Add.Reg(asm.R0, asm.R5),
			asm.And.Reg(asm.R3, asm.R0),
		)
	}
	p.emit(
		asm.Mov.Reg(asm.R0, asm.R1), // not above DEL
		asm.Xor.Imm(asm.R0, -1),
		asm.And.Reg(asm.R3, asm.R0),

		asm.Xor.Imm(asm.R3, -1), // now the bytes that are not fine
		asm.LoadImm(asm.R0, highBits, asm.DWord),
		asm.And.Reg(asm.R3, asm.R0),

		asm.Mov.Imm(asm.R0, 0), // the first of them
		asm.Sub.Reg(asm.R0, asm.R3),
		asm.And.Reg(asm.R0, asm.R3),

		asm.Mov.Reg(asm.R2, asm.R0), // the bytes before it: all, if there is none
		asm.RSh.Imm(asm.R2, 7),
		asm.Sub.Imm(asm.R2, 1),
		asm.And.Reg(asm.R2, asm.R1),
		asm.StoreMem(asm.R10, int16(frame), asm.R2, asm.DWord),
	)
}

// stopped goes to the label unless the byte that clean found in R1 is NUL.
func (p *program) stopped(label string) {
	p.emit(
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.RSh.Imm(asm.R2, 7),
		asm.LSh.Imm(asm.R0, 1),
		asm.Sub.Reg(asm.R0, asm.R2), // 0xff in that byte
		asm.And.Reg(asm.R0, asm.R1),
		asm.JNE.Imm(asm.R0, 0, label),
	)
}
