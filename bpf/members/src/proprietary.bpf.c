// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Members whose license keeps them from calling what is for GPL-compatible programs only. (It is their license in the
// kernel's eyes, not this file's.)

#include "member.h"

char LICENSE[] SEC("license") = "Proprietary";

MEMBER(proprietary, XDP_PASS);

SEC("xdp")
int proprietary(struct xdp_md *ctx)
{
	COUNT(proprietary);
	result->value = xdp_length(ctx);
	return proprietary_verdict;
}

MEMBER(proprietary_tc, TC_ACT_OK);

SEC("tc")
int proprietary_tc(struct __sk_buff *skb)
{
	COUNT(proprietary_tc);
	result->value = tc_length(skb);
	return proprietary_tc_verdict;
}
