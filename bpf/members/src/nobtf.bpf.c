// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
// clang: -g0

// Members without BTF, as compilers and strippers before BTF left them: maps are known by their sizes alone, functions
// by their symbols.

#include "member.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// libbpf's definition of a map before 1.0.
struct bpf_map_def {
	unsigned int type;
	unsigned int key_size;
	unsigned int value_size;
	unsigned int max_entries;
	unsigned int map_flags;
};

#define LEGACY_MEMBER(name, verdict)                                 \
	struct bpf_map_def SEC("maps") name##_result = {             \
		.type = BPF_MAP_TYPE_ARRAY,                          \
		.key_size = sizeof(__u32),                           \
		.value_size = sizeof(struct result),                 \
		.max_entries = 1,                                    \
	};                                                           \
	const volatile int name##_verdict = verdict

static __noinline __u64 square(__u64 n)
{
	volatile __u64 copy = n;

	return copy * n;
}

LEGACY_MEMBER(nobtf, XDP_PASS);

SEC("xdp")
int nobtf(struct xdp_md *ctx)
{
	COUNT(nobtf);
	result->value = square(xdp_length(ctx));
	return nobtf_verdict;
}

LEGACY_MEMBER(nobtf_tc, TC_ACT_OK);

SEC("tc")
int nobtf_tc(struct __sk_buff *skb)
{
	COUNT(nobtf_tc);
	result->value = square(tc_length(skb));
	return nobtf_tc_verdict;
}
