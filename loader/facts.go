// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"math"
	"math/bits"
	"os"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/bpfvol/bpfvol/verify"
)

// Facts returns what the object would do, read from its instructions and map definitions.
func (o *Object) Facts() verify.Facts {
	facts := verify.Facts{Attach: o.Attach()}
	for _, name := range slices.Sorted(maps.Keys(o.spec.Programs)) {
		insns := o.spec.Programs[name].Instructions
		facts.Programs = append(facts.Programs, verify.ProgramFacts{
			Name:         name,
			Instructions: instructions(insns),
			Helpers:      helpers(insns),
		})
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		cpus = runtime.NumCPU()
	}
	for _, name := range slices.Sorted(maps.Keys(o.spec.Maps)) {
		info := o.info(o.shownAs[name])
		facts.Maps = append(facts.Maps, verify.MapFacts{
			Name:      info.Name,
			Bytes:     mapBytes(o.spec.Maps[name], uint64(cpus)),
			Access:    info.Access,
			PinByName: info.PinByName,
		})
	}
	return facts
}

func (o *Object) info(name string) MapInfo {
	for _, m := range o.maps {
		if m.Name == name {
			return m
		}
	}
	return MapInfo{}
}

// instructions counts as the kernel does: a 64-bit load is two.
func instructions(insns asm.Instructions) int { return int(insns.Size() / instructionSize) }

// helpers returns the names of the helpers and kernel functions that the instructions call, sorted.
func helpers(insns asm.Instructions) []string {
	called := map[string]bool{}
	for i := range insns {
		switch ins := &insns[i]; {
		case ins.IsBuiltinCall():
			called[verify.HelperName(asm.BuiltinFunc(ins.Constant))] = true
		case ins.IsKfuncCall():
			called[ins.Reference()] = true
		}
	}
	return slices.Sorted(maps.Keys(called))
}

// Sizes of what the kernel keeps beside keys and values, from kernel/bpf of Linux 6.18 on 64 bits.
const (
	mapHeader    = 1024 // struct bpf_htab, bpf_array and their like, with what they keep for each CPU, rounded up
	hashElement  = 48   // struct htab_elem
	hashBucket   = 16   // struct bucket
	lpmNode      = 48   // struct lpm_trie_node
	stackElement = 32   // struct stack_map_bucket and the pointer to it
	ringPages    = 4    // of struct bpf_ringbuf beside the data
	listNode     = 8    // struct llist_node, before what bpf_mem_alloc hands out
)

// Flags of maps that decide where their memory comes from (linux/bpf.h).
const (
	noPrealloc = 1 << 0
	mmapable   = 1 << 10
)

// mapBytes estimates the kernel memory of a full map, from above. It saturates rather than overflows.
func mapBytes(m *ebpf.MapSpec, cpus uint64) uint64 {
	n := uint64(m.MaxEntries)
	key, value := roundUp(m.KeySize), roundUp(m.ValueSize)
	var each, extra uint64
	switch m.Type {
	case ebpf.Array:
		each = value
		if m.Flags&mmapable != 0 { // whole pages, and one for struct bpf_array
			extra = 2 * uint64(os.Getpagesize())
		}
	case ebpf.Queue, ebpf.Stack:
		each, n = value, add(n, 1) // one is always free
	case ebpf.ProgramArray, ebpf.ArrayOfMaps, ebpf.CGroupArray, ebpf.XSKMap, ebpf.SockMap, ebpf.ReusePortSockArray:
		each = 8 // a pointer
	case ebpf.PerCPUArray:
		each = 8 + mul(value, cpus)
	case ebpf.Hash, ebpf.LRUHash, ebpf.HashOfMaps:
		each, n = 2*hashBucket+element(m, key+value), add(n, cpus) // one spare element for each CPU
	case ebpf.PerCPUHash, ebpf.LRUCPUHash:
		each, n = 2*hashBucket+element(m, key+8)+mul(value, cpus), add(n, cpus)
	case ebpf.LPMTrie:
		each = 2 * (lpmNode + key + value) // with inner nodes
	case ebpf.StackTrace:
		each = 2 * (stackElement + value) // buckets are rounded up to a power of two
	case ebpf.RingBuf, ebpf.UserRingbuf:
		each, n = 1, add(n, ringPages*4096)
	case ebpf.Arena:
		each = 4096
	case ebpf.BloomFilter:
		each = 8
	case ebpf.PerfEventArray, ebpf.CPUMap:
		each, n = 64, max(n, cpus)
	default:
		// Storage of sockets, tasks, inodes and cgroups has no size: it is counted for one of them.
		each, n = 64+key+value, max(n, 1)
	}
	total := add(mul(each, n), mapHeader+extra)
	if m.InnerMap != nil { // made as a pattern, and gone when the outer map is there
		total = add(total, mapBytes(m.InnerMap, cpus))
	}
	return total
}

// element is what an entry of a hash table takes. One that is made when it is needed comes from a slab, whose objects have
// the size of a power of two.
func element(m *ebpf.MapSpec, keyAndValue uint64) uint64 {
	size := hashElement + keyAndValue
	if m.Flags&noPrealloc != 0 {
		size = 1 << bits.Len64(size+listNode-1)
	}
	return size
}

// roundUp rounds to the 8 bytes that the kernel aligns keys and values to.
func roundUp(size uint32) uint64 { return (uint64(size) + 7) &^ 7 }

func mul(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	if high != 0 {
		return math.MaxUint64
	}
	return low
}

func add(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return sum
}
