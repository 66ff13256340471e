// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"debug/elf"
	"encoding/binary"
)

// Kinds of BTF types that have more than a header of 12 bytes: how much, once and for each of what they list
// (linux/btf.h).
var btfKinds = map[uint32]struct{ fixed, each uint32 }{
	1:  {4, 0},  // int
	3:  {12, 0}, // array
	4:  {0, 12}, // struct
	5:  {0, 12}, // union
	6:  {0, 8},  // enum
	13: {0, 8},  // function prototype
	14: {4, 0},  // variable
	15: {0, 12}, // data section
	17: {4, 0},  // declaration tag
	19: {0, 12}, // enum of 64 bits
}

const (
	btfHeader = 24 // struct btf_header
	btfType   = 12 // struct btf_type
)

// checkTypes bounds how many types an object has. The BTF reader follows a type to those that it is made of by recursion, with
// 2 kB of stack for each: a chain of 500,000 pointers, which has 6 MB, ends the process, and no one can recover from that.
func checkTypes(file *elf.File) error {
	for _, s := range file.Sections {
		if s.Name != ".BTF" {
			continue
		}
		raw, err := s.Data()
		if err != nil {
			return invalid("object: malformed BTF: %s", printable(err.Error()))
		}
		if n := countTypes(raw, file.ByteOrder); n > maxTypes {
			return invalid("object: %d BTF types are over the limit of %d; strip types that no program uses", n, maxTypes)
		}
	}
	return nil
}

// countTypes counts up to what cannot be read, which the BTF reader refuses.
func countTypes(raw []byte, order binary.ByteOrder) (n int) {
	if len(raw) < btfHeader {
		return 0
	}
	start, size := uint64(order.Uint32(raw[4:]))+uint64(order.Uint32(raw[8:])), uint64(order.Uint32(raw[12:]))
	if start+size > uint64(len(raw)) {
		return 0
	}
	for types := raw[start : start+size]; len(types) >= btfType; n++ {
		info := order.Uint32(types[4:])
		kind := btfKinds[info>>24&0x1f]
		next := btfType + uint64(kind.fixed) + uint64(kind.each)*uint64(info&0xffff)
		types = types[min(next, uint64(len(types))):]
	}
	return n
}
