// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Counts packets and lets them pass: the least that is worth running, which the benchmarks share a hook among many of.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} packets SEC(".maps");

SEC("xdp")
int counter(struct xdp_md *ctx)
{
	__u32 index = 0;
	__u64 *count = bpf_map_lookup_elem(&packets, &index);

	if (count)
		(*count)++;
	return XDP_PASS;
}
