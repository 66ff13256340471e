// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Members for TC: one of each kind.

#define HOOK "tc"
#define CTX struct __sk_buff
#define PASS TC_ACT_OK
#define LENGTH tc_length
#define KERNEL_CTX struct sk_buff
#define DEVICE dev
#define DYNPTR_FROM bpf_dynptr_from_skb
#define CT_LOOKUP bpf_skb_ct_lookup

#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include "calls.h"
#include "flow.h"
#include "kernel.h"
#include "memory.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// Writes into the packet, for which the verifier puts code before the program.
MEMBER(packet_write, PASS);

SEC("tc")
int packet_write(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	COUNT(packet_write);
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return FAILED;
	__builtin_memset(eth->h_dest, 0xff, ETH_ALEN);
	result->value = bpf_ntohs(eth->h_proto);
	return packet_write_verdict;
}

// Writes into the context, for later members and the network stack.
MEMBER(ctx_write, PASS);

SEC("tc")
int ctx_write(struct __sk_buff *skb)
{
	COUNT(ctx_write);
	result->value = skb->mark;
	skb->mark = 7;
	skb->cb[0] = skb->mark;
	return ctx_write_verdict;
}

// Cuts the last four bytes off.
MEMBER(change_tail, PASS);

SEC("tc")
int change_tail(struct __sk_buff *skb)
{
	COUNT(change_tail);
	if (bpf_skb_change_tail(skb, skb->len - 4, 0))
		return FAILED;
	result->value = skb->len;
	return change_tail_verdict;
}

// Gives the packet a VLAN tag.
MEMBER(vlan_push, PASS);

SEC("tc")
int vlan_push(struct __sk_buff *skb)
{
	COUNT(vlan_push);
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), 5))
		return FAILED;
	result->value = skb->vlan_tci;
	return vlan_push_verdict;
}

// Sends every packet to the interface redirect_ifindex.
RESULT(redirect, BPF_MAP_TYPE_ARRAY);
const volatile __u32 redirect_ifindex = 1;

SEC("tc")
int redirect(struct __sk_buff *skb)
{
	COUNT(redirect);
	return bpf_redirect(redirect_ifindex, 0);
}

// Reads the packet by the instructions of classic BPF, LD_ABS and LD_IND: where the packet is too short, they end the
// program with verdict 0.
MEMBER(legacy_load, PASS);

unsigned long long load_half(void *skb, unsigned long long offset) asm("llvm.bpf.load.half");
unsigned long long load_byte(void *skb, unsigned long long offset) asm("llvm.bpf.load.byte");

SEC("tc")
int legacy_load(struct __sk_buff *skb)
{
	__u64 proto;

	COUNT(legacy_load);
	proto = load_half(skb, 12);
	result->value = proto << 8 | load_byte(skb, 100 + (proto & 1));
	return legacy_load_verdict;
}

// The same in a function, whose end that is then.
MEMBER(legacy_load_function, PASS);

static __noinline int load_byte_100(struct __sk_buff *skb)
{
	return load_byte(skb, 100);
}

SEC("tc")
int legacy_load_function(struct __sk_buff *skb)
{
	COUNT(legacy_load_function);
	result->value = load_byte_100(skb) + 1;
	return legacy_load_function_verdict;
}

// A section that says where it attaches.
MEMBER(tcx, TC_ACT_OK);

SEC("tcx/egress")
int tcx(struct __sk_buff *skb)
{
	COUNT(tcx);
	result->value = skb->len;
	return tcx_verdict;
}
