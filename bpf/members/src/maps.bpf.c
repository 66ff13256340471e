// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Four members of 20 maps each: one program can use 64. In each of its maps a member counts, too.

#include "member.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define EACH_NUMBER(do, name) \
	do(name, 1) do(name, 2) do(name, 3) do(name, 4) do(name, 5) \
	do(name, 6) do(name, 7) do(name, 8) do(name, 9) do(name, 10) \
	do(name, 11) do(name, 12) do(name, 13) do(name, 14) do(name, 15) \
	do(name, 16) do(name, 17) do(name, 18) do(name, 19)

#define DECLARE(name, n) RESULT(name##_##n, BPF_MAP_TYPE_ARRAY);
#define COUNT_IN(name, n) value += counted(&name##_##n##_result) ? 1 : 0;

#define TWENTY_MAPS(name)                           \
	MEMBER(name, XDP_PASS);                     \
	EACH_NUMBER(DECLARE, name)                  \
                                                    \
	SEC("xdp")                                  \
	int name(struct xdp_md *ctx)                \
	{                                           \
		__u64 value = 0;                    \
                                                    \
		COUNT(name);                        \
		EACH_NUMBER(COUNT_IN, name)         \
		result->value = value;              \
		return name##_verdict;              \
	}

TWENTY_MAPS(maps_a)
TWENTY_MAPS(maps_b)
TWENTY_MAPS(maps_c)
TWENTY_MAPS(maps_d)
