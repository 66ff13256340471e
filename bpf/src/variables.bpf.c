// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Global variables of every shape, in every data section. The program copies them into a map, and its verdict is one.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum level {
	LOW = -1,
	HIGH = 1,
};

struct range {
	__u16 from;
	__u16 to;
};

struct limits {
	struct range ports;
	_Bool strict;
};

const volatile __u32 verdict = XDP_PASS; // .rodata
const volatile __s8 small = -1;
const volatile _Bool enabled = 0;
const volatile char name[16] = "default";
const volatile __u16 ports[4] = {};
const volatile struct limits limits = {};
const volatile enum level level = LOW;
__u64 threshold = 7;                          // .data
__s64 total;                                  // .bss
const volatile __u32 tuned SEC(".rodata.tuning") = 3; // a section of its own

struct copy {
	__u32 verdict;
	__s8 small;
	_Bool enabled;
	char name[16];
	__u16 ports[4];
	struct limits limits;
	enum level level;
	__u64 threshold;
	__s64 total;
	__u32 tuned;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct copy);
} seen SEC(".maps");

SEC("xdp")
int report(struct xdp_md *ctx)
{
	__u32 index = 0;
	struct copy *copy = bpf_map_lookup_elem(&seen, &index);

	if (!copy)
		return XDP_ABORTED;
	copy->verdict = verdict;
	copy->small = small;
	copy->enabled = enabled;
	for (int i = 0; i < sizeof(name); i++)
		copy->name[i] = name[i];
	for (int i = 0; i < 4; i++)
		copy->ports[i] = ports[i];
	copy->limits.ports.from = limits.ports.from;
	copy->limits.ports.to = limits.ports.to;
	copy->limits.strict = limits.strict;
	copy->level = level;
	copy->threshold = threshold;
	copy->total = total;
	copy->tuned = tuned;
	return verdict;
}
