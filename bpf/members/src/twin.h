// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// A member of which there are two: programs, maps, variables and functions of the same names that do not do the same.
// Whoever includes this says FACTOR.

#include "member.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

MEMBER(twin, XDP_PASS);
MEMBER(twin_tc, TC_ACT_OK);

__u64 twin_total;

static __noinline __u64 scaled(__u64 n)
{
	volatile __u64 copy = n;

	return copy * FACTOR;
}

__noinline int offset(int n)
{
	barrier_var(n);
	return n + FACTOR;
}

static int add_scaled(__u32 i, void *sum)
{
	*(__u64 *)sum += scaled(i);
	return 0;
}

// 10 * FACTOR + FACTOR
static __always_inline __u64 value(void)
{
	__u64 sum = 0;

	bpf_loop(5, add_scaled, &sum, 0);
	twin_total += FACTOR;
	return sum + offset(0);
}

SEC("xdp")
int twin(struct xdp_md *ctx)
{
	COUNT(twin);
	result->value = value();
	return twin_verdict;
}

SEC("tc")
int twin_tc(struct __sk_buff *skb)
{
	COUNT(twin_tc);
	result->value = value();
	return twin_tc_verdict;
}
