// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// encode writes a YAML value into dst as C lays it out. What the value leaves out of an array or a struct keeps the
// bytes it has. path names the variable, and the place inside it, in errors.
func encode(dst []byte, t btf.Type, value any, path string) error {
	name := typeName(t)
	t = btf.UnderlyingType(t)
	size, err := btf.Sizeof(t)
	if err != nil || size > len(dst) {
		return invalid("variable %s: its type is malformed in the object's BTF", quote(path))
	}
	dst = dst[:size]
	switch t := t.(type) {
	case *btf.Int:
		if !isWord(size) {
			break
		}
		if t.Encoding == btf.Bool {
			return encodeBool(dst, value, path)
		}
		return encodeInt(dst, t.Encoding == btf.Signed || t.Encoding == btf.Char, name, value, path)
	case *btf.Enum:
		if !isWord(size) {
			break
		}
		return encodeEnum(dst, t, name, value, path)
	case *btf.Array:
		return encodeArray(dst, t, name, value, path)
	case *btf.Struct:
		return encodeMembers(dst, t.Members, name, value, path)
	case *btf.Union:
		if m, ok := value.(map[string]any); ok && len(m) > 1 {
			return invalid("variable %s: is a union; give one of its members", quote(path))
		}
		return encodeMembers(dst, t.Members, name, value, path)
	}
	return invalid("variable %s: variables of type %s cannot be set", quote(path), name)
}

// isWord says whether putInt can write an integer of size bytes.
func isWord(size int) bool { return size == 1 || size == 2 || size == 4 || size == 8 }

func encodeBool(dst []byte, value any, path string) error {
	b, ok := value.(bool)
	if !ok {
		return unfit(path, value, "a bool; write true or false")
	}
	clear(dst)
	if b {
		putInt(dst, 1)
	}
	return nil
}

func encodeInt(dst []byte, signed bool, name string, value any, path string) error {
	n, negative, ok := integer(value)
	if !ok {
		return unfit(path, value, "an integer ("+name+")")
	}
	if !inRange(n, negative, len(dst), signed) {
		low, high := bounds(len(dst), signed)
		return invalid("variable %s: %s is out of range; %s holds %s to %s", quote(path), describe(value), name, low, high)
	}
	putInt(dst, n)
	return nil
}

// integer returns a YAML number as two's complement.
func integer(value any) (n uint64, negative, ok bool) {
	switch v := value.(type) {
	case int:
		return uint64(v), v < 0, true
	case int64:
		return uint64(v), v < 0, true
	case uint64:
		return v, false, true
	}
	return 0, false, false
}

func inRange(n uint64, negative bool, size int, signed bool) bool {
	width := 8 * size
	switch {
	case negative:
		return signed && int64(n) >= math.MinInt64>>(64-width)
	case signed:
		return n <= math.MaxInt64>>(64-width)
	}
	return n <= math.MaxUint64>>(64-width)
}

func bounds(size int, signed bool) (low, high string) {
	width := 8 * size
	if signed {
		return strconv.FormatInt(math.MinInt64>>(64-width), 10), strconv.FormatInt(math.MaxInt64>>(64-width), 10)
	}
	return "0", strconv.FormatUint(math.MaxUint64>>(64-width), 10)
}

// putInt writes the low bytes of n in the byte order of the machine, which the object was checked to have.
func putInt(dst []byte, n uint64) {
	switch len(dst) {
	case 1:
		dst[0] = byte(n)
	case 2:
		binary.NativeEndian.PutUint16(dst, uint16(n))
	case 4:
		binary.NativeEndian.PutUint32(dst, uint32(n))
	case 8:
		binary.NativeEndian.PutUint64(dst, n)
	}
}

func encodeEnum(dst []byte, t *btf.Enum, typ string, value any, path string) error {
	name, ok := value.(string)
	if !ok {
		return encodeInt(dst, t.Signed, typ, value, path)
	}
	var known []string
	for _, v := range t.Values {
		if v.Name == name {
			putInt(dst, v.Value)
			return nil
		}
		known = append(known, v.Name)
	}
	return unknown(path, fmt.Sprintf("%s is no value of %s", quote(name), typ), name, known)
}

func encodeArray(dst []byte, t *btf.Array, typ string, value any, path string) error {
	if text, ok := value.(string); ok {
		elem, ok := btf.UnderlyingType(t.Type).(*btf.Int)
		if !ok || elem.Size != 1 || elem.Encoding == btf.Bool {
			return unfit(path, value, fmt.Sprintf("an array (%s); write a list", typ))
		}
		if len(text) > len(dst) {
			return invalid("variable %s: a string of %d bytes does not fit; %s holds %d", quote(path), len(text), typ, len(dst))
		}
		clear(dst[copy(dst, text):])
		return nil
	}
	values, ok := value.([]any)
	if !ok {
		return unfit(path, value, fmt.Sprintf("an array (%s); write a list", typ))
	}
	if uint64(len(values)) > uint64(t.Nelems) {
		return invalid("variable %s: a list of %d does not fit; %s holds %d", quote(path), len(values), typ, t.Nelems)
	}
	size, err := btf.Sizeof(t.Type)
	if err != nil {
		return invalid("variable %s: its type is malformed in the object's BTF", quote(path))
	}
	for i, v := range values {
		if err := encode(dst[i*size:], t.Type, v, path+"["+strconv.Itoa(i)+"]"); err != nil {
			return err
		}
	}
	return nil
}

func encodeMembers(dst []byte, members []btf.Member, typ string, value any, path string) error {
	values, ok := value.(map[string]any)
	if !ok {
		return unfit(path, value, fmt.Sprintf("%s; write a map of its members", typ))
	}
	flat := flatten(members, 0, 0)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		i := slices.IndexFunc(flat, func(m btf.Member) bool { return m.Name == name })
		if i < 0 {
			var known []string
			for _, m := range flat {
				known = append(known, m.Name)
			}
			return unknown(path, fmt.Sprintf("%s is no member of %s", quote(name), typ), name, known)
		}
		m := flat[i]
		if m.BitfieldSize != 0 || m.Offset%8 != 0 {
			return invalid("variable %s: bit fields cannot be set", quote(path+"."+name))
		}
		at := int(m.Offset.Bytes())
		if at > len(dst) {
			return invalid("variable %s: its type is malformed in the object's BTF", quote(path))
		}
		if err := encode(dst[at:], m.Type, values[name], path+"."+name); err != nil {
			return err
		}
	}
	return nil
}

// maxAnonymous bounds how deep anonymous members are looked into; C programmers do not go beyond three.
const maxAnonymous = 8

// flatten lists members with those of anonymous members in their place.
func flatten(members []btf.Member, base btf.Bits, depth int) []btf.Member {
	var flat []btf.Member
	for _, m := range members {
		m.Offset += base
		if m.Name != "" {
			flat = append(flat, m)
			continue
		}
		if depth == maxAnonymous {
			continue
		}
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			flat = append(flat, flatten(t.Members, m.Offset, depth+1)...)
		case *btf.Union:
			flat = append(flat, flatten(t.Members, m.Offset, depth+1)...)
		}
	}
	return flat
}

func unfit(path string, value any, want string) error {
	return invalid("variable %s: %s given; it is %s", quote(path), describe(value), want)
}

func unknown(path, what, word string, known []string) error {
	text := what + "; it has: " + list(known)
	if near := volume.Suggest(word, known); near != "" {
		text += "; did you mean " + quote(near) + "?"
	}
	return invalid("variable %s: %s", quote(path), text)
}

func describe(value any) string {
	switch v := value.(type) {
	case nil:
		return "nothing"
	case string:
		return quote(v)
	case []any:
		return "a list"
	case map[string]any:
		return "a map"
	}
	return truncate(fmt.Sprint(value), maxName)
}
