// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// One program for each hook of the network stack that older kernels have not, each counting its runs in the map hits.

#include <linux/bpf.h>
#include <linux/netfilter.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum hook {
	NETFILTER,
	NETKIT_PRIMARY,
	NETKIT_PEER,
	HOOKS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HOOKS);
	__type(key, __u32); // enum hook
	__type(value, __u64);
} hits SEC(".maps");

static __always_inline void hit(enum hook hook)
{
	__u32 index = hook;
	__u64 *count = bpf_map_lookup_elem(&hits, &index);

	if (count)
		__sync_fetch_and_add(count, 1);
}

SEC("netfilter")
int on_netfilter(void *ctx)
{
	hit(NETFILTER);
	return NF_ACCEPT;
}

SEC("netkit/primary")
int on_netkit(struct __sk_buff *skb)
{
	hit(NETKIT_PRIMARY);
	return -1; // NETKIT_NEXT
}

SEC("netkit/peer")
int on_netkit_peer(struct __sk_buff *skb)
{
	hit(NETKIT_PEER);
	return -1;
}
