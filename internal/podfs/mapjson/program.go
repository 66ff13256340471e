// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

var (
	// ErrNoIterator is for map types whose elements the kernel does not iterate over.
	ErrNoIterator = errors.New("no iterator")
	// ErrTooWide is for types that take more than one line of the kernel's buffer, or more work than the verifier does quickly.
	ErrTooWide = errors.New("too wide")
)

// ProgramName is the key of the iterator's program in its collection.
const ProgramName = "json"

// poolName is the key and name of its map. Formats must be in a frozen map, and cilium/ebpf freezes those of this prefix.
const poolName = ".rodata.json"

// Iterator returns a program for the kernel's bpf_map_elem iterator that prints the map's elements as JSON lines, and the
// map that holds its formats. It is the only program of the collection. Attach it with link.AttachIter.
//
// The error wraps ErrNoIterator or ErrTooWide and says why; a message names no map.
func Iterator(m MapSpec) (*ebpf.CollectionSpec, error) {
	switch m.Type {
	case ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LRUCPUHash, ebpf.Array, ebpf.PerCPUArray:
	default:
		// bpf_iter_attach_map, kernel/bpf/map_iter.c
		return nil, fmt.Errorf("%w: the kernel does not iterate over maps of this type", ErrNoIterator)
	}
	if bits := binary.NativeEndian.Uint16([]byte{1, 0}); bits != 1 {
		return nil, fmt.Errorf("%w: not on big-endian machines", ErrNoIterator)
	}
	l := NewLine(m)
	value := l.value
	if l.perCPU {
		cpus, err := ebpf.PossibleCPU()
		if err != nil {
			return nil, fmt.Errorf("%w: possible CPUs: %w", ErrNoIterator, err)
		}
		value = arrayOf(value, cpus, (value.size+7)&^7)
	}
	if err := checkLimits(l.key, value); err != nil {
		return nil, err
	}

	p := newProgram()
	p.line(l.key, value)
	if len(p.ins) > maxProgram || len(p.pool) > maxPool {
		return nil, fmt.Errorf("%w: the program would have %d instructions and %d bytes of formats", ErrTooWide, len(p.ins), len(p.pool))
	}
	return &ebpf.CollectionSpec{
		Programs: map[string]*ebpf.ProgramSpec{ProgramName: {
			Name:         ProgramName + "_" + m.Name, // for bpftool
			Type:         ebpf.Tracing,
			AttachType:   ebpf.AttachTraceIter,
			AttachTo:     "bpf_map_elem",
			License:      "GPL", // bpf_seq_printf demands it
			Instructions: p.ins,
		}},
		Maps: map[string]*ebpf.MapSpec{poolName: {
			Name:       poolName,
			Type:       ebpf.Array,
			KeySize:    4,
			ValueSize:  uint32(len(p.pool)),
			MaxEntries: 1,
			Flags:      unix.BPF_F_RDONLY_PROG,
			Contents:   []ebpf.MapKV{{Key: uint32(0), Value: p.pool}},
		}},
	}, nil
}

// Registers with a fixed role. R0 to R5 are scratch, R7 is used while printing long text.
const (
	regSeq   = asm.R6
	regKey   = asm.R8
	regValue = asm.R9
)

// Stack frame.
const (
	frameArgs  = -8 * maxArgs             // arguments of the next bpf_seq_printf
	frameText  = frameArgs - maxShort - 8 // a copy of short text, with its NUL
	frameLoops = frameText - 16*maxLoops  // for each loop: counter, saved base
	maxArgs    = 12                       // MAX_BPRINTF_VARARGS, include/linux/bpf.h
	maxShort   = 128                      // longer text is printed in pieces
	maxLoops   = 8
)

// program is the text and data of an iterator while it is made. Text and arguments are gathered until a call is full.
type program struct {
	ins   asm.Instructions
	pool  []byte
	known map[string]uint32 // offsets of strings in the pool
	enums map[*enum]uint32  // offsets of tables in the pool

	base    asm.Register // the key or the value, moved on in loops
	loops   int          // nesting
	labels  int
	label   string // of the next instruction
	useIPv6 bool

	pending
}

// pending is what the next call prints.
type pending struct {
	format string
	args   int
}

func newProgram() *program {
	p := &program{known: map[string]uint32{}, enums: map[*enum]uint32{}}
	p.pool = append(p.pool, 0) // offset 0 means: none
	return p
}

// line makes the whole program.
func (p *program) line(key, value *node) {
	// struct bpf_iter__bpf_map_elem { meta; map; key; value }, struct bpf_iter_meta { seq; ... }
	p.emit(
		asm.LoadMem(regSeq, asm.R1, 0, asm.DWord),
		asm.LoadMem(regSeq, regSeq, 0, asm.DWord),
		asm.LoadMem(regKey, asm.R1, 16, asm.DWord),
		asm.LoadMem(regValue, asm.R1, 24, asm.DWord),
		asm.JEq.Imm(regKey, 0, "done"), // the call after the last element
		asm.JEq.Imm(regValue, 0, "done"),
	)
	p.text(`{"key":`)
	p.base = regKey
	p.print(key, 0)
	p.text(`,"value":`)
	p.base = regValue
	p.print(value, 0)
	p.text("}\n")
	p.flush()
	p.mark("done")
	p.emit(asm.Mov.Imm(asm.R0, 0), asm.Return())

	// A helper refused. Where the buffer is full, the kernel sees that itself: it drops the partial line and comes back
	// with an empty buffer. Anything else (bpf_seq_printf is nested too deeply) is EAGAIN to the reader, without the
	// partial line.
	p.mark("failed")
	p.emit(
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.Mov.Imm(asm.R0, 0),
		asm.JEq.Imm(asm.R1, -int32(unix.EOVERFLOW), "return"),
		asm.Mov.Imm(asm.R0, 1),
	)
	p.mark("return")
	p.emit(asm.Return())
	if p.useIPv6 {
		p.functionIPv6()
	}
}

func (p *program) emit(ins ...asm.Instruction) {
	if p.label != "" && len(ins) > 0 {
		ins[0] = ins[0].WithSymbol(p.label)
		p.label = ""
	}
	p.ins = append(p.ins, ins...)
}

// mark names the next instruction.
func (p *program) mark(label string) {
	if p.label != "" {
		p.emit(asm.Mov.Reg(regSeq, regSeq)) // no instruction can have two names
	}
	p.label = label
}

func (p *program) newLabel(what string) string {
	p.labels++
	return fmt.Sprintf("%s_%d", what, p.labels)
}

// text adds literal text to what the next call prints.
func (p *program) text(s string) { p.format += strings.ReplaceAll(s, "%", "%%") }

// room makes sure that the next call takes n more arguments.
func (p *program) room(n int) {
	if p.args+n > maxArgs {
		p.flush()
	}
}

// arg adds a register as an argument. The caller made room.
func (p *program) arg(verb string, reg asm.Register) {
	p.emit(asm.StoreMem(asm.R10, p.slot(), reg, asm.DWord))
	p.verb(verb)
}

// slot is where the next argument goes.
func (p *program) slot() int16 { return int16(frameArgs + 8*p.args) }

// verb prints the argument that was stored in slot.
func (p *program) verb(verb string) {
	p.format += verb
	p.args++
}

// flush prints what is pending.
func (p *program) flush() {
	format, args := p.format, p.args
	p.pending = pending{}
	switch {
	case format == "":
		return
	case args == 0:
		s := strings.ReplaceAll(format, "%%", "%")
		p.emit(asm.Mov.Reg(asm.R1, regSeq))
		p.address(asm.R2, p.intern(s))
		p.emit(asm.Mov.Imm(asm.R3, int32(len(s))), asm.FnSeqWrite.Call())
	default:
		p.emit(asm.Mov.Reg(asm.R1, regSeq))
		p.printf(format, asm.R10, frameArgs, args)
	}
	p.emit(asm.JSLT.Imm(asm.R0, 0, "failed"))
}

// printf calls bpf_seq_printf with R1 set by the caller.
func (p *program) printf(format string, frame asm.Register, offset, args int) {
	p.address(asm.R2, p.intern(format))
	p.emit(
		asm.Mov.Imm(asm.R3, int32(len(format)+1)),
		asm.Mov.Reg(asm.R4, frame),
		asm.Add.Imm(asm.R4, int32(offset)),
		asm.Mov.Imm(asm.R5, int32(8*args)),
		asm.FnSeqPrintf.Call(),
	)
}

// address loads the address of an offset of the pool.
func (p *program) address(dst asm.Register, offset uint32) {
	p.emit(asm.LoadMapValue(dst, 0, offset).WithReference(poolName))
}

// intern returns the offset of a string in the pool; a NUL follows it.
func (p *program) intern(s string) uint32 {
	offset, ok := p.known[s]
	if !ok {
		offset = uint32(len(p.pool))
		p.known[s] = offset
		p.pool = append(append(p.pool, s...), 0)
	}
	return offset
}
