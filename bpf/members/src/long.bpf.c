// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// A member that leaves early for packets of 64 bytes, so far from its end that no jump of 16 bits gets there.

#include "member.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

MEMBER(long_body, XDP_PASS);

SEC("xdp")
int long_body(struct xdp_md *ctx)
{
	__u64 sum = xdp_length(ctx);

	COUNT(long_body);
	if (__builtin_expect(sum <= 64, 1))
		return long_body_verdict;
	asm volatile(".rept 17000;"
		     "%0 ^= 0x5eed;"
		     "%0 *= 3;"
		     ".endr"
		     : "+r"(sum));
	result->value = sum;
	// Not by return: clang 14 would jump back to the exit above, by an offset that it silently cuts to 16 bits.
	asm volatile("r0 = %0; exit" : : "r"((__u64)long_body_verdict) : "r0");
	__builtin_unreachable();
}
