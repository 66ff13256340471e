// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"

	"github.com/cilium/ebpf/btf"
)

// Append appends raw, the bytes of a value of type t, as JSON.
func Append(dst []byte, t btf.Type, raw []byte) []byte {
	return layout(t, len(raw)).append(dst, raw)
}

// Append appends one element and a newline. A per-CPU map has one value per possible CPU, in CPU order; any other map
// has one value. Keys and values are as long as the map says.
func (l *Line) Append(dst, key []byte, values ...[]byte) []byte {
	dst = append(dst, `{"key":`...)
	dst = l.key.append(dst, key)
	dst = append(dst, `,"value":`...)
	if l.perCPU {
		dst = append(dst, '[')
	}
	for i, v := range values {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = l.value.append(dst, v[:l.value.size])
	}
	if l.perCPU {
		dst = append(dst, ']')
	}
	return append(dst, "}\n"...)
}

func (n *node) append(dst, raw []byte) []byte {
	raw = raw[:n.size]
	switch n.kind {
	case kindUint:
		return strconv.AppendUint(dst, n.number(raw), 10)
	case kindInt:
		return strconv.AppendInt(dst, int64(n.number(raw)), 10)
	case kindBool:
		return strconv.AppendBool(dst, n.number(raw) != 0)
	case kindEnum:
		v := n.number(raw)
		if name, ok := n.enum.names[v]; ok {
			return append(dst, name...)
		}
		if n.enum.signed {
			return strconv.AppendInt(dst, int64(v), 10)
		}
		return strconv.AppendUint(dst, v, 10)
	case kindPointer:
		dst = append(dst, `"0x`...)
		dst = strconv.AppendUint(dst, n.number(raw), 16)
		return append(dst, '"')
	case kindIPv4:
		return appendAddr(dst, netip.AddrFrom4([4]byte(raw)))
	case kindIPv6:
		return appendAddr(dst, netip.AddrFrom16([16]byte(raw)))
	case kindText:
		return appendText(dst, raw)
	case kindObject:
		dst = append(dst, '{')
		for i, f := range n.fields {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, f.name...)
			dst = append(dst, ':')
			dst = f.node.append(dst, raw[f.off:])
		}
		return append(dst, '}')
	case kindArray:
		dst = append(dst, '[')
		for i := range n.n {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = n.elem.append(dst, raw[i*n.stride:])
		}
		return append(dst, ']')
	}
	return appendHex(dst, raw)
}

// signed tells whether the highest bit of the number is its sign.
func (n *node) signed() bool { return n.kind == kindInt || n.kind == kindEnum && n.enum.signed }

// number returns the integer in raw, extended to 64 bits.
func (n *node) number(raw []byte) uint64 {
	var b [16]byte
	copy(b[:], raw)
	v := binary.LittleEndian.Uint64(b[:])
	if n.swap {
		v = binary.BigEndian.Uint64(b[:]) >> (64 - 8*n.size)
	}
	if n.width == 0 {
		return extend(v, 8*n.size, n.signed())
	}
	v >>= n.shift
	if n.size > 8 {
		v |= uint64(b[8]) << (64 - n.shift)
	}
	return extend(v, n.width, n.signed())
}

func appendAddr(dst []byte, a netip.Addr) []byte {
	dst = append(dst, '"')
	dst = a.AppendTo(dst)
	return append(dst, '"')
}

func appendText(dst, raw []byte) []byte {
	end := len(raw)
	for i, c := range raw {
		if c == 0 {
			end = i
			break
		}
		if c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return appendHex(dst, raw)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, raw[:end]...)
	return append(dst, '"')
}

func appendHex(dst, raw []byte) []byte {
	dst = append(dst, `"0x`...)
	dst = hex.AppendEncode(dst, raw)
	return append(dst, '"')
}
