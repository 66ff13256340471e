// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// What the members have in common.
//
// A program named x counts its packets in the map x_result, and returns the variable x_verdict where its kind lets it.
// A program whose kind does not work returns FAILED, which no test takes for a verdict.

#ifndef MEMBER_H
#define MEMBER_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#define FAILED 99

struct result {
	__u64 packets; // how often the program ran
	__u64 value;   // what shows that its kind worked; package members says what it is
};

#define RESULT(name, map_type)                  \
	struct {                                \
		__uint(type, map_type);         \
		__uint(max_entries, 1);         \
		__type(key, __u32);             \
		__type(value, struct result);   \
	} name##_result SEC(".maps")

// MEMBER declares what belongs to the program of that name.
#define MEMBER(name, verdict)                   \
	RESULT(name, BPF_MAP_TYPE_ARRAY);       \
	const volatile int name##_verdict = verdict

// Counts a packet. The result is never null, which the verifier does not know.
static __always_inline struct result *counted(void *map)
{
	__u32 index = 0;
	struct result *result = bpf_map_lookup_elem(map, &index);

	if (result)
		__sync_fetch_and_add(&result->packets, 1);
	return result;
}

// COUNT begins a member: it counts the packet and declares result.
#define COUNT(name)                                              \
	struct result *result = counted(&name##_result);         \
	if (!result)                                             \
		return FAILED

static __always_inline __u32 xdp_length(struct xdp_md *ctx)
{
	return ctx->data_end - ctx->data;
}

static __always_inline __u32 tc_length(struct __sk_buff *skb)
{
	return skb->len;
}

#endif
