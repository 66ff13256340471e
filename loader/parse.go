// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
)

// Object is what one volume loads of one bytecode object. It is a blueprint: nothing of it is in the kernel, and it
// can be loaded any number of times.
type Object struct {
	attach []volume.Attach
	maps   []MapInfo
	// spec holds only what is loaded. Its Variables are nil and must stay so: cilium/ebpf maps the data section of
	// every variable into this process and lets go of it only when the garbage collector comes by.
	spec *ebpf.CollectionSpec
	// shownAs are the names of maps by their names in spec.
	shownAs map[string]string
}

// Parse works out what a volume loads of a verified object.
func Parse(code verify.Bytecode, spec volume.Spec) (*Object, error) { return parse(code.ELF(), spec) }

func parse(elf []byte, asked volume.Spec) (*Object, error) {
	spec, err := readSpec(elf)
	if err != nil {
		return nil, err
	}
	if err := checkOrder(spec); err != nil {
		return nil, err
	}
	attach, err := attachments(spec, asked.Attach)
	if err != nil {
		return nil, err
	}
	if err := setVariables(spec, asked.Variables); err != nil {
		return nil, err
	}
	if err := setEntries(spec, asked.MapEntries); err != nil {
		return nil, err
	}
	used, err := reach(spec, attach)
	if err != nil {
		return nil, err
	}
	shown, err := show(spec, used, asked.Maps)
	if err != nil {
		return nil, err
	}
	if err := checkLicenses(used.programs); err != nil {
		return nil, err
	}
	o := &Object{
		attach: attach,
		spec: &ebpf.CollectionSpec{
			Programs:  used.programs,
			Maps:      used.maps,
			Types:     spec.Types,
			ByteOrder: spec.ByteOrder,
		},
		shownAs: map[string]string{},
	}
	for _, name := range slices.Sorted(maps.Keys(used.maps)) {
		m := used.maps[name]
		byName := m.Pinning != ebpf.PinNone
		if err := settle(name, m); err != nil {
			return nil, err
		}
		info := mapInfo(name, m)
		info.PinByName = byName
		if s, ok := shown[name]; ok {
			info.Name, info.Access, info.Shown = s.name, s.access, true
		}
		o.maps = append(o.maps, info)
		o.shownAs[name] = info.Name
	}
	return o, nil
}

// Attach returns where the programs attach, after defaults. The hooks are shared: they must not be changed.
func (o *Object) Attach() []volume.Attach { return slices.Clone(o.attach) }

// Maps returns every map that Load makes, sorted by name.
func (o *Object) Maps() []MapInfo { return slices.Clone(o.maps) }

// TypesBTF returns the object's BTF as a blob of its own, which bpftool and any BTF library read; nil for an object
// without BTF. It is encoded anew rather than copied from the ELF, where the layout of data sections is not in the BTF
// but in relocations.
func (o *Object) TypesBTF() ([]byte, error) {
	if o.spec.Types == nil {
		return nil, nil
	}
	var types []btf.Type
	for t, err := range o.spec.Types.All() {
		if err != nil {
			return nil, invalid("object: malformed BTF: %s", printable(err.Error()))
		}
		types = append(types, t)
	}
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		return nil, invalid("object: malformed BTF: %s", printable(err.Error()))
	}
	blob, err := b.Marshal(nil, nil)
	if err != nil {
		return nil, invalid("object: malformed BTF: %s", printable(err.Error()))
	}
	return blob, nil
}
