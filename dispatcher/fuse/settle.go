// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Settle makes code of a program that the kernel has taken, as cilium/ebpf made it when it loaded spec. types is the
// kernel's BTF, read when the program needs it. What has no place in another program, such as a kernel function of a
// module, is no error: the code is then Alone, and says why.
func Settle(spec *ebpf.ProgramSpec, types *btf.Cache) (*Code, error) {
	c := &Code{Name: spec.Name, Type: spec.Type, License: spec.License, Flags: spec.Flags}
	insns := make(asm.Instructions, len(spec.Instructions))
	copy(insns, spec.Instructions)
	var err error
	if c.Alone, err = relocate(insns, types); err == nil && c.Alone == "" {
		c.Alone, err = c.resolve(insns, types)
	}
	if err != nil {
		return nil, fmt.Errorf("program %.64q: %w", spec.Name, err)
	}
	if c.Alone != "" {
		return c.Lost(c.Alone), nil
	}
	names := map[int]string{}
	at := 0
	for i := range insns {
		if symbol := insns[i].Symbol(); symbol != "" {
			names[at] = symbol
		}
		at += width(&insns[i])
	}
	// Marshalling resolves calls and jumps by name; read back, they are numbers, and nothing else is attached to them.
	b, err := marshal(insns)
	if err != nil {
		return nil, fmt.Errorf("program %.64q: %w", spec.Name, err)
	}
	if c.Instructions, err = asm.AppendInstructions(nil, bytes.NewReader(b), byteOrder, platform); err != nil {
		return nil, fmt.Errorf("program %.64q: %w", spec.Name, err)
	}
	c.Functions = map[int]string{0: identifier(spec.Name)}
	at = 0
	for i := range c.Instructions {
		ins := &c.Instructions[i]
		if ins.IsFunctionReference() {
			if to, ok := target(ins, at); ok {
				c.Functions[to] = identifier(names[to])
			}
		}
		at += width(ins)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("program %.64q: %w", spec.Name, err)
	}
	return c, nil
}

// errLocalType means that an instruction holds the number of a type in its own object's BTF.
var errLocalType = errors.New("type number of the object")

// relocate applies the CO-RE relocations, against the same kernel types as cilium/ebpf does when it loads.
func relocate(insns asm.Instructions, types *btf.Cache) (alone string, err error) {
	var relocations []*btf.CORERelocation
	var relocated []*asm.Instruction
	for i := range insns {
		if r := btf.CORERelocationMetadata(&insns[i]); r != nil {
			relocations, relocated = append(relocations, r), append(relocated, &insns[i])
		}
	}
	if len(relocations) == 0 {
		return "", nil
	}
	kernel, err := types.Kernel()
	if err != nil {
		return "", fmt.Errorf("kernel types: %w", err)
	}
	targets := []*btf.Spec{kernel}
	modules, err := types.Modules()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("kernel types: %w", err)
	}
	for _, m := range modules {
		module, err := types.Module(m)
		if err != nil {
			return "", fmt.Errorf("types of kernel module %s: %w", m, err)
		}
		targets = append(targets, module)
	}
	fixups, err := btf.CORERelocate(relocations, targets, byteOrder, func(btf.Type) (btf.TypeID, error) {
		return 0, errLocalType
	})
	if errors.Is(err, errLocalType) {
		return "it uses type numbers of its own BTF", nil
	} else if err != nil {
		return "", fmt.Errorf("relocate types: %w", err)
	}
	for i, fixup := range fixups {
		if err := fixup.Apply(relocated[i]); err != nil {
			return "", fmt.Errorf("relocate types: %w", err)
		}
	}
	return "", nil
}

// resolve turns names of maps into indexes and names of kernel functions into numbers. The loads of two things know
// their source by metadata that cilium/ebpf keeps to itself: kernel symbols and configuration variables.
func (c *Code) resolve(insns asm.Instructions, types *btf.Cache) (alone string, err error) {
	indexes := map[string]int{}
	for i := range insns {
		ins := &insns[i]
		name := ins.Reference()
		switch {
		case ins.IsLoadFromMap() && name == "":
			return "it reads configuration variables of the kernel", nil
		case ins.IsLoadFromMap():
			index, ok := indexes[name]
			if !ok {
				index = len(c.Maps)
				indexes[name] = index
				c.Maps = append(c.Maps, name)
			}
			setMap(ins, uint32(index))
			*ins = ins.WithReference("")
		case ins.IsLoadOfFunctionPointer():
			// of the program itself: resolved by name, below
		case ins.OpCode.IsDWordLoad() && (name != "" || ins.Src != asm.R0):
			return "it uses the address of a kernel symbol", nil
		case ins.IsKfuncCall() && name == "bpf_throw":
			return "it throws exceptions", nil
		case ins.IsKfuncCall():
			id, err := kernelFunction(name, types)
			if errors.Is(err, btf.ErrNotFound) {
				return "it calls a function of a kernel module, or one that this kernel lacks", nil
			} else if err != nil {
				return "", err
			}
			ins.Constant = int64(id)
			*ins = ins.WithReference("")
		}
	}
	return "", nil
}

// kernelFunction returns the number of a function in the kernel's own BTF.
func kernelFunction(name string, types *btf.Cache) (btf.TypeID, error) {
	kernel, err := types.Kernel()
	if err != nil {
		return 0, fmt.Errorf("kernel types: %w", err)
	}
	var fn *btf.Func
	if err := kernel.TypeByName(name, &fn); err != nil {
		return 0, fmt.Errorf("kernel function %.64q: %w", name, err)
	}
	return kernel.TypeID(fn)
}
