// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Three members of 91 functions each, with the program itself: one program can have 256.

#include "member.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define EACH_DIGIT(do, name, tens)                                               \
	do(name##tens##0) do(name##tens##1) do(name##tens##2) do(name##tens##3)  \
	do(name##tens##4) do(name##tens##5) do(name##tens##6) do(name##tens##7)  \
	do(name##tens##8) do(name##tens##9)
#define EACH_NUMBER(do, name)                                                    \
	EACH_DIGIT(do, name, _1) EACH_DIGIT(do, name, _2) EACH_DIGIT(do, name, _3) \
	EACH_DIGIT(do, name, _4) EACH_DIGIT(do, name, _5) EACH_DIGIT(do, name, _6) \
	EACH_DIGIT(do, name, _7) EACH_DIGIT(do, name, _8) EACH_DIGIT(do, name, _9)

#define DEFINE(function)                                \
	static __noinline __u64 function(__u64 n)       \
	{                                               \
		barrier_var(n);                         \
		return n + 1;                           \
	}
#define CALL(function) value = function(value);

#define NINETY_FUNCTIONS(name)                      \
	MEMBER(name, XDP_PASS);                     \
	EACH_NUMBER(DEFINE, name)                   \
                                                    \
	SEC("xdp")                                  \
	int name(struct xdp_md *ctx)                \
	{                                           \
		__u64 value = 0;                    \
                                                    \
		COUNT(name);                        \
		EACH_NUMBER(CALL, name)             \
		result->value = value;              \
		return name##_verdict;              \
	}

NINETY_FUNCTIONS(functions_a)
NINETY_FUNCTIONS(functions_b)
NINETY_FUNCTIONS(functions_c)
