// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// variable is one global variable of the object, in the bytes that its section will be loaded with.
type variable struct {
	name    string
	section string
	typ     btf.Type
	bytes   []byte
}

// variables returns the object's variables, static ones too, sorted by name. Those of an object without BTF have no
// type and are left out.
func variables(spec *ebpf.CollectionSpec) []variable {
	var all []variable
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		m := spec.Maps[name]
		section, ok := m.Value.(*btf.Datasec)
		if !ok || !isData(name) || len(m.Contents) != 1 {
			continue
		}
		data, ok := m.Contents[0].Value.([]byte)
		if !ok {
			continue
		}
		for _, v := range section.Vars {
			t, ok := v.Type.(*btf.Var)
			if !ok || uint64(v.Offset)+uint64(v.Size) > uint64(len(data)) {
				continue
			}
			all = append(all, variable{t.Name, name, t.Type, data[v.Offset : v.Offset+v.Size : v.Offset+v.Size]})
		}
	}
	slices.SortStableFunc(all, func(a, b variable) int { return strings.Compare(a.name, b.name) })
	return all
}

// setVariables writes values into the data sections of spec.
func setVariables(spec *ebpf.CollectionSpec, values map[string]any) error {
	if len(values) == 0 {
		return nil
	}
	all := variables(spec)
	if len(all) == 0 && len(spec.Variables) > 0 {
		return invalid("variables: the object has no BTF, so their types are unknown; compile it with -g")
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		var found []variable
		for _, v := range all {
			if v.name == name {
				found = append(found, v)
			}
		}
		switch len(found) {
		case 0:
			var have []string
			for _, v := range all {
				have = append(have, v.name)
			}
			return &problem{text: missing("variable", name, slices.Compact(have)).Error(), kind: ErrInvalid}
		case 1:
			if err := encode(found[0].bytes, found[0].typ, values[name], name); err != nil {
				return err
			}
		default:
			var sections []string
			for _, v := range found {
				sections = append(sections, v.section)
			}
			return invalid("variable %s: ambiguous: it is in sections %s; rename one in the source", quote(name), strings.Join(sections, ", "))
		}
	}
	return nil
}
