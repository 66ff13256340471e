// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Code is one program with everything settled that an object file leaves open: types are relocated, kernel functions
// and subprograms are numbers. Only maps are open: they are indexes into Maps. So a program can be put together again
// without its object, its image, or a network.
type Code struct {
	Name    string           `json:"name"`
	Type    ebpf.ProgramType `json:"type"`
	License string           `json:"license"`
	Flags   uint32           `json:"flags,omitempty"` // BPF_F_* of BPF_PROG_LOAD
	// Maps are the names of the maps that the instructions load: the low half of a load's constant is an index of it.
	Maps []string `json:"maps,omitempty"`
	// Functions are the names of the functions in Instructions, by where they begin, in instructions of 8 bytes. The
	// program itself is at 0.
	Functions map[int]string `json:"functions"`
	// Frames are the bytes of stack of the functions, in their order, where the verifier was asked (ParseFrames).
	Frames []int `json:"frames,omitempty"`
	// Alone says why the program can run only as it was loaded; then there are no Instructions. Empty: it can be fused.
	Alone string `json:"alone,omitempty"`

	// Instructions bear no symbols, references or metadata.
	Instructions asm.Instructions `json:"-"`
}

// Lost is the code of a program of which nothing is left but what the kernel has: it can run only as it was loaded, and
// why says what is missing.
func (c *Code) Lost(why string) *Code {
	return &Code{Name: c.Name, Type: c.Type, License: c.License, Flags: c.Flags, Functions: map[int]string{0: identifier(c.Name)}, Alone: why}
}

// platform is how cilium/ebpf calls the kernel whose helpers instructions call.
const platform = "linux"

// byteOrder is this machine's, by the name that cilium/ebpf knows it by.
var byteOrder = func() binary.ByteOrder {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return binary.LittleEndian
	}
	return binary.BigEndian
}()

// Bytes returns the instructions as the kernel takes them, maps aside.
func (c *Code) Bytes() ([]byte, error) { return marshal(c.Instructions) }

func marshal(insns asm.Instructions) ([]byte, error) {
	var b bytes.Buffer
	if err := insns.Marshal(&b, byteOrder); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// SetBytes is the reverse of Bytes. It refuses what does not fit together: map indexes, calls and functions.
func (c *Code) SetBytes(b []byte) error {
	insns, err := asm.AppendInstructions(nil, bytes.NewReader(b), byteOrder, platform)
	if err != nil {
		return fmt.Errorf("instructions: %w", err)
	}
	old := c.Instructions
	c.Instructions = insns
	if err := c.check(); err != nil {
		c.Instructions = old
		return err
	}
	return nil
}

// check refuses code that Fuse could not place: every function begins at an instruction, every call leads to one of
// them, every map exists. Whether the code is a valid program is the verifier's to say.
func (c *Code) check() error {
	starts := map[int]bool{}
	at := 0
	for i := range c.Instructions {
		starts[at] = true
		at += width(&c.Instructions[i])
	}
	if c.Functions[0] == "" {
		return fmt.Errorf("code: no function at 0")
	}
	for start := range c.Functions {
		if !starts[start] {
			return fmt.Errorf("code: function at %d, where no instruction is", start)
		}
	}
	at = 0
	for i := range c.Instructions {
		ins := &c.Instructions[i]
		if ins.IsFunctionReference() {
			if to, ok := target(ins, at); !ok || c.Functions[to] == "" {
				return fmt.Errorf("code: instruction %d calls no function", at)
			}
		}
		if ins.IsLoadFromMap() && mapIndex(ins) >= len(c.Maps) {
			return fmt.Errorf("code: instruction %d loads map %d of %d", at, mapIndex(ins), len(c.Maps))
		}
		at += width(ins)
	}
	return nil
}

// width is how many units of 8 bytes an instruction takes.
func width(ins *asm.Instruction) int { return int(ins.Width()) }

// target is where a call, or a load of a function's address, leads that stands at a place.
func target(ins *asm.Instruction, at int) (to int, ok bool) {
	// A load's constant has the distance in its low half.
	distance := int(int32(ins.Constant))
	if ins.IsFunctionCall() && ins.Constant != int64(distance) {
		return 0, false
	}
	return at + 1 + distance, true
}

// setTarget is the reverse of target.
func setTarget(ins *asm.Instruction, at, to int) {
	distance := int64(to - at - 1)
	if ins.IsLoadOfFunctionPointer() {
		distance = int64(uint32(distance)) // the upper half stays zero
	}
	ins.Constant = distance
}

// mapIndex is the low half of a map load's constant; the upper half is the offset into a value.
func mapIndex(ins *asm.Instruction) int { return int(uint32(ins.Constant)) }

func setMap(ins *asm.Instruction, low uint32) {
	ins.Constant = ins.Constant&^0xffffffff | int64(low)
}

var notIdentifier = regexp.MustCompile(`[^A-Za-z0-9_]`)

// maxIdentifier is the longest name of a function that every kernel takes in BTF (KSYM_NAME_LEN was 128 before 6.1).
const maxIdentifier = 64

// identifier makes a name from outside fit for BTF.
func identifier(name string) string {
	name = notIdentifier.ReplaceAllString(name, "_")
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		name = "_" + name
	}
	return name[:min(len(name), maxIdentifier)]
}

// HasFrags reports whether the program takes packets in fragments.
func (c *Code) HasFrags() bool { return c.Flags&xdpHasFrags != 0 }
