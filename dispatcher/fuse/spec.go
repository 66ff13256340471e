// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Spec is the code as a program of its own again, with BTF of its functions whether or not the object had any.
// descriptors are those of Maps.
func (c *Code) Spec(descriptors []int) *ebpf.ProgramSpec {
	insns := make(asm.Instructions, len(c.Instructions))
	at := 0
	for i, ins := range c.Instructions {
		if ins.IsLoadFromMap() {
			setMap(&ins, uint32(descriptors[mapIndex(&ins)]))
		}
		if name := c.Functions[at]; at == 0 {
			ins = btf.WithFuncMetadata(ins, entryType(c.Type, name))
		} else if name != "" {
			ins = btf.WithFuncMetadata(ins, subprogramType(name))
		}
		insns[i] = ins
		at += width(&ins)
	}
	return &ebpf.ProgramSpec{
		Name: c.Name, Type: c.Type, AttachType: attachType(c.Type), License: c.License, Flags: c.Flags, Instructions: insns,
	}
}

// attachType is what a program must be loaded for to attach, and to stand in a program array with others.
func attachType(t ebpf.ProgramType) ebpf.AttachType {
	if t == ebpf.XDP {
		return ebpf.AttachXDP
	}
	return ebpf.AttachNone // fits TCX and cls_bpf
}
