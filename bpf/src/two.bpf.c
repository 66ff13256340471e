// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Two programs with a map each and one that they share: a volume that attaches one of them gets no map of the other.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct counter {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};

struct counter both SEC(".maps");
struct counter first_only SEC(".maps");
struct counter second_only SEC(".maps");

static __always_inline void increment(void *map)
{
	__u32 index = 0;
	__u64 *count = bpf_map_lookup_elem(map, &index);

	if (count)
		__sync_fetch_and_add(count, 1);
}

SEC("xdp")
int first(struct xdp_md *ctx)
{
	increment(&both);
	increment(&first_only);
	return XDP_PASS;
}

SEC("xdp")
int second(struct xdp_md *ctx)
{
	increment(&both);
	increment(&second_only);
	return XDP_PASS;
}
