// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"github.com/cilium/ebpf"
)

// Line is how the elements of a map are printed.
type Line struct {
	key    *node
	value  *node
	perCPU bool
}

// NewLine lays out the lines of a map. It always succeeds: bytes without a usable type are printed in hex.
func NewLine(m MapSpec) *Line {
	l := &Line{
		key:    layout(m.Key, int(m.KeySize)),
		value:  layout(m.Value, int(m.ValueSize)),
		perCPU: perCPU(m.Type),
	}
	if l.key.kind == kindHex && m.KeySize == 4 && (m.Type == ebpf.Array || m.Type == ebpf.PerCPUArray) {
		l.key = &node{kind: kindUint, size: 4} // an index, with BTF or without
	}
	return l
}

func perCPU(t ebpf.MapType) bool {
	switch t {
	case ebpf.PerCPUHash, ebpf.LRUCPUHash, ebpf.PerCPUArray:
		return true
	}
	return false
}
