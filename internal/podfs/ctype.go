// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// typeName returns a type as C writes it, by name only: types.btf has the members. Without BTF it returns the size.
func typeName(t btf.Type, size uint32) string {
	name := cmp.Or(ctype(t, 0), fmt.Sprintf("%d bytes", size))
	return fmt.Sprintf("%.200s", name)
}

// ctype returns "" for what is no type of a value.
func ctype(t btf.Type, depth int) string {
	const limit = 32
	if depth++; depth > limit {
		return ""
	}
	switch t := t.(type) {
	case *btf.Int, *btf.Float, *btf.Typedef, *btf.Datasec:
		return t.TypeName()
	case *btf.Struct:
		return strings.TrimSpace("struct " + t.Name)
	case *btf.Union:
		return strings.TrimSpace("union " + t.Name)
	case *btf.Enum:
		return strings.TrimSpace("enum " + t.Name)
	case *btf.Fwd:
		return t.Kind.String() + " " + t.Name
	case *btf.Pointer:
		return cmp.Or(ctype(t.Target, depth), "void") + " *"
	case *btf.Const:
		return ctype(t.Type, depth)
	case *btf.Volatile:
		return ctype(t.Type, depth)
	case *btf.Restrict:
		return ctype(t.Type, depth)
	case *btf.TypeTag:
		return ctype(t.Type, depth)
	case *btf.Array:
		// The outermost dimension is written first.
		elem, inner, more := strings.Cut(ctype(t.Type, depth), "[")
		if more {
			inner = "[" + inner
		}
		return fmt.Sprintf("%s[%d]%s", elem, t.Nelems, inner)
	}
	return ""
}
