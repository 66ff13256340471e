// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Members for XDP: one of each kind.

#define HOOK "xdp"
#define CTX struct xdp_md
#define PASS XDP_PASS
#define LENGTH xdp_length
#define KERNEL_CTX struct xdp_buff
#define DEVICE rxq->dev
#define DYNPTR_FROM bpf_dynptr_from_xdp
#define CT_LOOKUP bpf_xdp_ct_lookup

#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include "calls.h"
#include "flow.h"
#include "kernel.h"
#include "memory.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// Puts a VLAN tag into the packet.
MEMBER(adjust_head, PASS);

struct vlan_hdr {
	struct ethhdr eth; // h_proto is that of the tag
	__be16 tci;
	__be16 proto;
} __attribute__((packed));

SEC("xdp")
int adjust_head(struct xdp_md *ctx)
{
	struct vlan_hdr *to;
	struct ethhdr *from;
	void *data, *end;

	COUNT(adjust_head);
	if (bpf_xdp_adjust_head(ctx, -4))
		return FAILED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	to = data;
	from = data + 4;
	if ((void *)(to + 1) > end || (void *)(from + 1) > end)
		return FAILED;
	__builtin_memmove(to, from, 2 * ETH_ALEN);
	to->eth.h_proto = bpf_htons(ETH_P_8021Q);
	to->tci = bpf_htons(5);
	result->value = LENGTH(ctx);
	return adjust_head_verdict;
}

// Cuts the last four bytes off.
MEMBER(adjust_tail, PASS);

SEC("xdp")
int adjust_tail(struct xdp_md *ctx)
{
	COUNT(adjust_tail);
	if (bpf_xdp_adjust_tail(ctx, -4))
		return FAILED;
	result->value = LENGTH(ctx);
	return adjust_tail_verdict;
}

// Puts four bytes before the packet, for later members and the network stack.
MEMBER(meta_write, PASS);

SEC("xdp")
int meta_write(struct xdp_md *ctx)
{
	__u32 *meta;

	COUNT(meta_write);
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*meta)))
		return FAILED;
	meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return FAILED;
	*meta = 0xcafe;
	result->value = *meta;
	return meta_write_verdict;
}

// Reads what meta_write left, or 0.
MEMBER(meta_read, PASS);

SEC("xdp")
int meta_read(struct xdp_md *ctx)
{
	__u32 *meta = (void *)(long)ctx->data_meta;

	COUNT(meta_read);
	result->value = (void *)(meta + 1) > (void *)(long)ctx->data ? 0 : *meta;
	return meta_read_verdict;
}

// Sends the packet back to its sender.
MEMBER(reflect, XDP_TX);

SEC("xdp")
int reflect(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u8 sender[ETH_ALEN];

	COUNT(reflect);
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return FAILED;
	__builtin_memcpy(sender, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, sender, ETH_ALEN);
	return reflect_verdict;
}

// Sends every packet to the interface redirect_ifindex.
RESULT(redirect, BPF_MAP_TYPE_ARRAY);
const volatile __u32 redirect_ifindex = 1;

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
	COUNT(redirect);
	return bpf_redirect(redirect_ifindex, 0);
}

// Sends every packet to the interface in the map, if there is one.
MEMBER(redirect_map, PASS);

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} redirect_map_ports SEC(".maps");

SEC("xdp")
int redirect_map(struct xdp_md *ctx)
{
	COUNT(redirect_map);
	return bpf_redirect_map(&redirect_map_ports, 0, redirect_map_verdict);
}

// Takes packets of many pages, and reads their last byte.
MEMBER(frags, PASS);

SEC("xdp.frags")
int frags(struct xdp_md *ctx)
{
	__u8 last;

	COUNT(frags);
	if (bpf_xdp_load_bytes(ctx, bpf_xdp_get_buff_len(ctx) - 1, &last, sizeof(last)))
		return FAILED;
	result->value = last;
	return frags_verdict;
}
