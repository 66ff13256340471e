// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Asks for its map to be pinned by its name, which libbpf does below /sys/fs/bpf, for the whole machine.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} packets SEC(".maps");

SEC("xdp")
int pinned(struct xdp_md *ctx)
{
	__u32 index = 0;
	__u64 *count = bpf_map_lookup_elem(&packets, &index);

	if (count)
		__sync_fetch_and_add(count, 1);
	return XDP_PASS;
}
