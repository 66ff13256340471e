// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"math/bits"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// MapInfo describes one map that Load makes.
type MapInfo struct {
	// Name is the file name where the map is shown, and its key in Collection.Maps. A data section that is not shown
	// keeps the name of its section, dots and all.
	Name       string
	Type       ebpf.MapType
	KeySize    uint32
	ValueSize  uint32
	MaxEntries uint32
	Flags      uint32
	Key, Value btf.Type // nil without BTF; a data section's value is a struct of its variables
	Access     volume.Access
	Shown      bool
	PinByName  bool // asks for one map for the whole machine, and does not get it
}

// needed are the programs and maps that a volume loads.
type needed struct {
	programs map[string]*ebpf.ProgramSpec
	maps     map[string]*ebpf.MapSpec
}

// reach returns the attached programs, the maps that they use, the maps inside those, and the programs that they
// tail-call through program arrays filled in the object.
func reach(spec *ebpf.CollectionSpec, attach []volume.Attach) (needed, error) {
	n := needed{programs: map[string]*ebpf.ProgramSpec{}, maps: map[string]*ebpf.MapSpec{}}
	for _, a := range attach {
		if err := n.addProgram(spec, a.Program); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (n needed) addProgram(spec *ebpf.CollectionSpec, name string) error {
	if n.programs[name] != nil {
		return nil
	}
	prog := spec.Programs[name]
	if prog == nil {
		return invalid("object: a program array holds %s, which is no program of the object", quote(name))
	}
	n.programs[name] = prog
	for i := range prog.Instructions {
		ins := &prog.Instructions[i]
		if byNumber(ins) {
			return invalid("program %s: instruction %d names a map or a kernel object by number, not by a symbol; compile it with clang, which does not",
				quote(name), i)
		}
		if !ins.IsLoadFromMap() || ins.Reference() == "" {
			continue
		}
		if err := n.addMap(spec, ins.Reference()); err != nil {
			return err
		}
	}
	return nil
}

// byNumber says whether an instruction names something outside the program by a number and not by a symbol: a map by a
// descriptor, which would be one of this process and may be another volume's, or a part of the kernel by its BTF id, whose
// name no policy would see.
func byNumber(ins *asm.Instruction) bool {
	switch {
	case ins.IsKfuncCall():
		return ins.Reference() == "" || ins.Constant != -1 // which is what the ELF reader makes of a symbol's
	case !ins.OpCode.IsDWordLoad():
		return false
	}
	switch ins.Src {
	case asm.R0, asm.PseudoFunc:
		return false
	case asm.PseudoMapFD:
		return ins.Reference() == ""
	case asm.PseudoMapValue:
		// The ELF reader knows variables of .kconfig without a reference. Descriptor 0 is no map.
		return ins.Reference() == "" && ins.Constant != 0
	}
	return true
}

func (n needed) addMap(spec *ebpf.CollectionSpec, name string) error {
	if n.maps[name] != nil {
		return nil
	}
	m := spec.Maps[name]
	if m == nil {
		return invalid("object: a program uses map %s, which is not in the object", quote(name))
	}
	if m.Type == ebpf.StructOpsMap {
		// Shown in a pod, it could be made a link by who has no privilege (kernel/bpf/syscall.c, link_create): a scheduler or
		// congestion control of the whole node, and no hook of a policy.
		return invalid("map %s: operations of the kernel (struct_ops) cannot be shown; leave it out of maps", quote(name))
	}
	n.maps[name] = m
	for _, kv := range m.Contents {
		inner, ok := kv.Value.(string)
		if !ok {
			continue
		}
		var err error
		if m.Type == ebpf.ProgramArray {
			err = n.addProgram(spec, inner)
		} else {
			err = n.addMap(spec, inner)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// showing is how one map appears to the pod.
type showing struct {
	name   string
	access volume.Access
}

// show says which maps the pod sees, by their names in spec: those asked for, which it adds to used, or else every map
// in used that is not a data section.
func show(spec *ebpf.CollectionSpec, used needed, asked []volume.MapRef) (map[string]showing, error) {
	shown := map[string]showing{}
	if len(asked) == 0 {
		for name := range used.maps {
			if isData(name) {
				continue
			}
			if !isName(name) {
				return nil, invalid("map %s: the name cannot be a file name; use letters, digits and _", quote(name))
			}
			shown[name] = showing{name, volume.ReadOnly}
		}
		return shown, nil
	}
	names := fileNames(spec)
	for _, ref := range asked {
		name, ok := names[ref.Name]
		if !ok {
			return nil, missing("map", ref.Name, slices.Sorted(maps.Keys(names)))
		}
		if err := used.addMap(spec, name); err != nil {
			return nil, err
		}
		if ref.Access == volume.ReadWrite {
			if err := checkWritable(ref.Name, name, spec.Maps[name]); err != nil {
				return nil, err
			}
		}
		shown[name] = showing{ref.Name, ref.Access}
	}
	return shown, nil
}

// flagReadOnly is BPF_F_RDONLY (linux/bpf.h). The kernel holds only the descriptor to it that made the map, so we do.
const flagReadOnly = 1 << 3

// checkWritable refuses access rw where nothing could be written, or the object says that nothing may.
func checkWritable(shown, name string, m *ebpf.MapSpec) error {
	switch {
	case strings.HasPrefix(name, ".rodata"): // frozen when it is loaded
		return invalid("map %s: access rw: constants cannot change once they are loaded; show it read-only, and set variables", quote(shown))
	case m.Flags&flagReadOnly != 0:
		return invalid("map %s: access rw: the object makes it with BPF_F_RDONLY, read-only for user space; show it read-only", quote(shown))
	}
	return nil
}

// fileNames are the maps that can be shown, by the name that the pod sees: data sections lose their dots, unless a map
// has that name already. Names that cannot be a file name cannot be shown.
func fileNames(spec *ebpf.CollectionSpec) map[string]string {
	names := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		file := name
		if isData(name) {
			file = strings.ReplaceAll(strings.TrimPrefix(name, "."), ".", "_")
			if spec.Maps[file] != nil || names[file] != "" {
				continue
			}
		}
		if isName(file) {
			names[file] = name
		}
	}
	return names
}

// setEntries overrides max_entries.
func setEntries(spec *ebpf.CollectionSpec, entries map[string]uint32) error {
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		m := spec.Maps[name]
		if m == nil || isData(name) {
			have := slices.DeleteFunc(slices.Sorted(maps.Keys(spec.Maps)), isData)
			return missing("map", name, have)
		}
		m.MaxEntries = entries[name]
	}
	return nil
}

// ringBytes is the size of a ring buffer whose object leaves it to user space.
const ringBytes = 256 << 10

// settle makes a map fit to be created for one volume.
func settle(name string, m *ebpf.MapSpec) error {
	// LIBBPF_PIN_BY_NAME asks for one map for the whole machine. Here it is the volume's, and pinned like the others.
	m.Pinning = ebpf.PinNone
	for ; m != nil; m = m.InnerMap {
		switch {
		case isRing(m.Type) && m.MaxEntries == 0:
			m.MaxEntries = ringBytes
		case isRing(m.Type) && (bits.OnesCount32(m.MaxEntries) != 1 || int(m.MaxEntries)%os.Getpagesize() != 0):
			return invalid("map %s: a ring buffer of %d bytes; the size must be a power of two and at least %d: set mapEntries",
				quote(name), m.MaxEntries, os.Getpagesize())
		case m.MaxEntries == 0 && needsEntries(m.Type):
			return invalid("map %s: max_entries is 0, which leaves the size to user space; set mapEntries: {%s: 1024} or what it takes",
				quote(name), printable(name))
		}
	}
	return nil
}

func isRing(t ebpf.MapType) bool { return t == ebpf.RingBuf || t == ebpf.UserRingbuf }

func needsEntries(t ebpf.MapType) bool {
	switch t {
	case ebpf.Hash, ebpf.Array, ebpf.PerCPUHash, ebpf.PerCPUArray, ebpf.LRUHash, ebpf.LRUCPUHash, ebpf.LPMTrie,
		ebpf.ProgramArray, ebpf.StackTrace, ebpf.CGroupArray, ebpf.ArrayOfMaps, ebpf.HashOfMaps, ebpf.DevMap,
		ebpf.DevMapHash, ebpf.SockMap, ebpf.SockHash, ebpf.XSKMap, ebpf.Queue, ebpf.Stack, ebpf.ReusePortSockArray,
		ebpf.BloomFilter:
		return true
	}
	return false
}

func mapInfo(name string, m *ebpf.MapSpec) MapInfo {
	info := MapInfo{
		Name: name, Type: m.Type, KeySize: m.KeySize, ValueSize: m.ValueSize, MaxEntries: m.MaxEntries, Flags: m.Flags,
		Key: m.Key, Value: m.Value, Access: volume.ReadOnly,
	}
	if section, ok := m.Value.(*btf.Datasec); ok {
		info.Key = &btf.Int{Name: "unsigned int", Size: 4, Encoding: btf.Unsigned}
		info.Value = sectionStruct(section, m.ValueSize)
	}
	return info
}

// sectionStruct is a data section as a type that a map's value can have.
func sectionStruct(section *btf.Datasec, size uint32) *btf.Struct {
	s := &btf.Struct{Name: strings.ReplaceAll(strings.TrimPrefix(section.Name, "."), ".", "_"), Size: size}
	for _, v := range section.Vars {
		variable, ok := v.Type.(*btf.Var)
		if !ok || v.Offset > size || v.Size > size-v.Offset {
			continue
		}
		s.Members = append(s.Members, btf.Member{Name: variable.Name, Type: variable.Type, Offset: btf.Bits(v.Offset * 8)})
	}
	slices.SortFunc(s.Members, func(a, b btf.Member) int { return int(int64(a.Offset) - int64(b.Offset)) })
	return s
}
