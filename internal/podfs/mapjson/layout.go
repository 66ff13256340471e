// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// MapSpec is what must be known of a map to print it.
type MapSpec struct {
	Name       string
	Type       ebpf.MapType
	KeySize    uint32
	ValueSize  uint32
	Key, Value btf.Type // nil: no BTF
}

// kind says how the bytes of a node are printed.
type kind uint8

const (
	kindHex kind = iota
	kindUint
	kindInt
	kindBool
	kindEnum
	kindPointer
	kindIPv4
	kindIPv6
	kindText
	kindObject
	kindArray
)

// node is a type laid out for printing. The program and the Go twin walk the same tree.
type node struct {
	kind kind
	size int // bytes; of a bit-field, those that it touches

	width, shift int  // bit-field: its bits, and how far they are from the lowest bit; width 0: none
	swap         bool // stored in network byte order

	enum   *enum
	fields []field
	elem   *node // of n elements, stride bytes apart
	n      int
	stride int

	values int // how many are printed
}

// field is a node in its object.
type field struct {
	name string // as JSON, with quotes
	off  int
	node *node
}

// enum holds the names of values, each sign- or zero-extended to 64 bits.
type enum struct {
	signed  bool
	values  []uint64 // in order of declaration, without duplicates
	names   map[uint64]string
	longest int // name

	// Where the values lie close together: the lowest, and how many there are up to the highest. Else width is 0.
	lowest uint64
	width  int
}

// Limits on types, so that hostile BTF costs neither stack nor time.
const (
	maxDepth  = 24      // nesting
	maxNodes  = 1 << 12 // members and element types
	maxValues = 1 << 20 // printed, which few bytes may hold: arrays of arrays of nothing
	maxName   = 256     // of an enumerator; bpf_seq_printf cuts what does not fit in 512 bytes
)

// errLayout is for types that have no layout; their bytes are printed in hex.
var errLayout = errors.New("type cannot be laid out")

// layout returns how size bytes of type t are printed.
func layout(t btf.Type, size int) *node {
	if t == nil {
		return hexBytes(size)
	}
	l := layouter{nodes: maxNodes, enums: map[*btf.Enum]*enum{}}
	n, err := l.of(t, 0)
	if err != nil || n.size != size {
		return hexBytes(size)
	}
	return n
}

func hexBytes(size int) *node { return &node{kind: kindHex, size: size} }

// layouter counts what it has made, and makes each enum once.
type layouter struct {
	nodes int
	enums map[*btf.Enum]*enum
}

func (l *layouter) of(t btf.Type, depth int) (*node, error) {
	if l.nodes--; l.nodes < 0 || depth > maxDepth {
		return nil, errLayout
	}
	t, name, err := strip(t)
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case *btf.Int:
		return integer(t, name), nil
	case *btf.Enum:
		if err := checkSize(t.Size, 1, 2, 4, 8); err != nil {
			return nil, err
		}
		return &node{kind: kindEnum, size: int(t.Size), enum: l.enum(t)}, nil
	case *btf.Pointer:
		return &node{kind: kindPointer, size: 8}, nil
	case *btf.Float:
		return hexBytes(int(t.Size)), checkSize(t.Size, 2, 4, 8, 12, 16)
	case *btf.Array:
		return l.array(t, depth)
	case *btf.Struct:
		if t.Name == "in6_addr" && t.Size == 16 {
			return &node{kind: kindIPv6, size: 16}, nil
		}
		return l.object(int(t.Size), t.Members, depth)
	case *btf.Union:
		return l.object(int(t.Size), t.Members, depth)
	case *btf.Datasec:
		return l.section(t, depth)
	}
	return nil, errLayout // void, function, forward declaration
}

// strip removes what does not change the bytes. It returns the innermost typedef that changes how they are printed.
func strip(t btf.Type) (_ btf.Type, name string, err error) {
	for range maxDepth {
		switch v := t.(type) {
		case *btf.Typedef:
			switch v.Name {
			case "__be16", "__be32", "__be64":
				name = v.Name
			}
			t = v.Type
		case *btf.Const:
			t = v.Type
		case *btf.Volatile:
			t = v.Type
		case *btf.Restrict:
			t = v.Type
		case *btf.TypeTag:
			t = v.Type
		case *btf.Var:
			t = v.Type
		default:
			return t, name, nil
		}
	}
	return nil, "", errLayout
}

func integer(t *btf.Int, name string) *node {
	n := &node{kind: kindUint, size: int(t.Size)}
	switch {
	case checkSize(t.Size, 1, 2, 4, 8) != nil:
		n.kind = kindHex
	case name == "__be32" && t.Size == 4:
		n.kind = kindIPv4
	case name == "__be16" && t.Size == 2, name == "__be64" && t.Size == 8:
		n.swap = true
	case t.Encoding == btf.Bool:
		n.kind = kindBool
	case t.Encoding == btf.Signed:
		n.kind = kindInt
	}
	return n
}

func (l *layouter) enum(t *btf.Enum) *enum {
	if e, ok := l.enums[t]; ok {
		return e
	}
	e := &enum{signed: t.Signed, names: make(map[uint64]string, len(t.Values))}
	for _, v := range t.Values {
		value := extend(v.Value, int(t.Size)*8, t.Signed)
		name := quote(v.Name)
		if _, ok := e.names[value]; !ok && v.Name != "" && len(name) <= maxName {
			e.names[value] = name
			e.values = append(e.values, value)
			e.longest = max(e.longest, len(name))
		}
	}
	e.span()
	l.enums[t] = e
	return e
}

// span finds out whether a table of the values is small.
func (e *enum) span() {
	if len(e.values) == 0 {
		return
	}
	compare := cmp.Compare[uint64]
	if e.signed {
		compare = func(a, b uint64) int { return cmp.Compare(int64(a), int64(b)) }
	}
	lowest := slices.MinFunc(e.values, compare)
	if n := slices.MaxFunc(e.values, compare) - lowest; n < uint64(min(64+8*len(e.values), 4096)) {
		e.lowest, e.width = lowest, int(n)+1
	}
}

// extend takes the low bits of v as a number.
func extend(v uint64, bits int, signed bool) uint64 {
	if signed {
		return uint64(int64(v<<(64-bits)) >> (64 - bits))
	}
	return v << (64 - bits) >> (64 - bits)
}

func (l *layouter) array(t *btf.Array, depth int) (*node, error) {
	inner, _, err := strip(t.Type)
	if err != nil {
		return nil, err
	}
	if i, ok := inner.(*btf.Int); ok && i.Size == 1 && (i.Name == "char" || i.Encoding == btf.Char) {
		return &node{kind: kindText, size: int(t.Nelems)}, nil
	}
	elem, err := l.of(t.Type, depth+1)
	if err != nil {
		return nil, err
	}
	n := arrayOf(elem, int(t.Nelems), elem.size)
	if n.values > maxValues {
		return nil, errLayout
	}
	return n, nil
}

func arrayOf(elem *node, n, stride int) *node {
	return &node{kind: kindArray, size: n * stride, elem: elem, n: n, stride: stride, values: n * max(elem.values, 1)}
}

func (l *layouter) object(size int, members []btf.Member, depth int) (*node, error) {
	n := &node{kind: kindObject, size: size}
	for _, m := range members {
		var inner *node
		var err error
		off := int(m.Offset / 8)
		if m.BitfieldSize > 0 {
			inner, err = l.bitfield(m)
		} else if inner, err = l.of(m.Type, depth+1); err == nil && m.Offset%8 != 0 {
			err = errLayout
		}
		switch {
		case err != nil:
			return nil, err
		case off+inner.size > size:
			return nil, errLayout
		case m.Name != "":
			n.add(quote(m.Name), off, inner)
		case inner.kind == kindObject:
			for _, f := range inner.fields {
				n.add(f.name, off+f.off, f.node)
			}
		}
	}
	return n, nil
}

func (n *node) add(name string, off int, inner *node) {
	n.fields = append(n.fields, field{name, off, inner})
	n.values += max(inner.values, 1)
}

// bitfield is for little-endian machines, where offset counts from the lowest bit of the lowest byte.
func (l *layouter) bitfield(m btf.Member) (*node, error) {
	if l.nodes--; l.nodes < 0 || m.BitfieldSize > 64 {
		return nil, errLayout
	}
	t, _, err := strip(m.Type)
	if err != nil {
		return nil, err
	}
	n := &node{kind: kindUint, width: int(m.BitfieldSize), shift: int(m.Offset % 8)}
	n.size = (n.shift + n.width + 7) / 8
	switch t := t.(type) {
	case *btf.Int:
		switch t.Encoding {
		case btf.Signed:
			n.kind = kindInt
		case btf.Bool:
			n.kind = kindBool
		}
	case *btf.Enum:
		if err := checkSize(t.Size, 1, 2, 4, 8); err != nil {
			return nil, err
		}
		n.kind, n.enum = kindEnum, l.enum(t)
	default:
		return nil, errLayout
	}
	return n, nil
}

// section lays out the variables of a data section.
func (l *layouter) section(t *btf.Datasec, depth int) (*node, error) {
	n := &node{kind: kindObject, size: int(t.Size)}
	for _, v := range t.Vars {
		variable, ok := v.Type.(*btf.Var)
		if !ok {
			return nil, errLayout
		}
		inner, err := l.of(variable.Type, depth+1)
		if err != nil {
			return nil, err
		}
		if int(v.Offset)+inner.size > n.size {
			return nil, errLayout
		}
		n.add(quote(variable.Name), int(v.Offset), inner)
	}
	return n, nil
}

func checkSize(size uint32, known ...uint32) error {
	for _, k := range known {
		if size == k {
			return nil
		}
	}
	return errLayout
}

// quote returns a name as JSON in printable ASCII, which is all that the kernel's formats may hold.
func quote(name string) string {
	b, err := json.Marshal(name)
	if err != nil {
		return `""` // a string always marshals
	}
	var s strings.Builder
	for _, r := range string(b) {
		switch {
		case r >= 0x20 && r < 0x7f:
			s.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&s, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&s, `\u%04x`, r)
		}
	}
	return s.String()
}
