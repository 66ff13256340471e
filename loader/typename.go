// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// typeName is a type as C names it: "__u32", "struct flow", "char[16]". Names come from the object: print it with
// printable.
func typeName(t btf.Type) string { return printable(cName(t, 0)) }

func cName(t btf.Type, depth int) string {
	if depth > 16 { // a crafted BTF can nest for ever
		return "..."
	}
	switch t := t.(type) {
	case nil:
		return ""
	case *btf.Void:
		return "void"
	case *btf.Array:
		elem, dims := t.Type, fmt.Sprintf("[%d]", t.Nelems)
		for inner, ok := elem.(*btf.Array); ok && len(dims) < maxText; inner, ok = elem.(*btf.Array) {
			elem, dims = inner.Type, dims+fmt.Sprintf("[%d]", inner.Nelems)
		}
		return cName(elem, depth+1) + dims
	case *btf.Pointer:
		return cName(t.Target, depth+1) + " *"
	case *btf.Const:
		return cName(t.Type, depth+1)
	case *btf.Volatile:
		return cName(t.Type, depth+1)
	case *btf.Struct:
		return tagged("struct", t.Name)
	case *btf.Union:
		return tagged("union", t.Name)
	case *btf.Enum:
		return tagged("enum", t.Name)
	case *btf.Fwd:
		return tagged("struct", t.Name)
	}
	return t.TypeName()
}

func tagged(keyword, name string) string {
	if name == "" {
		return keyword
	}
	return keyword + " " + name
}
