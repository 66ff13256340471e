// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"cmp"
	"strings"

	"github.com/cilium/ebpf"
)

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

// TypeName returns the kernel's name of a map type, "lru_hash", as bpftool prints it.
func TypeName(t ebpf.MapType) string { return cmp.Or(mapTypes[t], strings.ToLower(t.String())) }
