// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
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

// mapTypes holds the kernel's names, as bpftool prints them, where they are not the lower-case name of ebpf.MapType.
var mapTypes = map[ebpf.MapType]string{
	ebpf.ProgramArray:        "prog_array",
	ebpf.PerfEventArray:      "perf_event_array",
	ebpf.PerCPUHash:          "percpu_hash",
	ebpf.PerCPUArray:         "percpu_array",
	ebpf.StackTrace:          "stack_trace",
	ebpf.CGroupArray:         "cgroup_array",
	ebpf.LRUHash:             "lru_hash",
	ebpf.LRUCPUHash:          "lru_percpu_hash",
	ebpf.LPMTrie:             "lpm_trie",
	ebpf.ArrayOfMaps:         "array_of_maps",
	ebpf.HashOfMaps:          "hash_of_maps",
	ebpf.ReusePortSockArray:  "reuseport_sockarray",
	ebpf.CGroupStorage:       "cgroup_storage",
	ebpf.PerCPUCGroupStorage: "percpu_cgroup_storage",
	ebpf.SkStorage:           "sk_storage",
	ebpf.DevMapHash:          "devmap_hash",
	ebpf.StructOpsMap:        "struct_ops",
	ebpf.InodeStorage:        "inode_storage",
	ebpf.TaskStorage:         "task_storage",
	ebpf.BloomFilter:         "bloom_filter",
	ebpf.UserRingbuf:         "user_ringbuf",
	ebpf.CgroupStorage:       "cgrp_storage",
}

func mapType(t ebpf.MapType) string { return cmp.Or(mapTypes[t], strings.ToLower(t.String())) }
