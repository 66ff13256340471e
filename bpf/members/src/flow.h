// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Members that are special for the way their instructions go.

#include "member.h"

// Runs in no time, but the verifier, which cannot know costly_rounds, follows a long loop to its end.
MEMBER(costly, PASS);

volatile __u32 costly_rounds;

SEC(HOOK)
int costly(CTX *ctx)
{
	__u32 rounds = costly_rounds;
	__u64 sum = 1;

	COUNT(costly);
	for (__u32 i = 0; i < 37500 && i < rounds; i++) {
		sum = sum * 3 + i;
		barrier_var(sum);
	}
	result->value = sum;
	return costly_verdict;
}

// Its loop goes back to the first instruction: r1 is the context there at first, and zero the second time.
MEMBER(back_to_start, PASS);

SEC(HOOK)
int back_to_start(CTX *ctx)
{
	asm volatile("1:"
		     "r6 = r1;"
		     "if r6 == 0 goto 2f;"
		     "r1 = 0;"
		     "*(u32 *)(r10 - 4) = r1;"
		     "r1 = back_to_start_result ll;"
		     "r2 = r10;"
		     "r2 += -4;"
		     "call %[lookup];"
		     "if r0 == 0 goto 2f;"
		     "r1 = 1;"
		     "lock *(u64 *)(r0 + 0) += r1;"
		     "lock *(u64 *)(r0 + 8) += r1;"
		     "r1 = 0;"
		     "goto 1b;"
		     "2:"
		     "r1 = back_to_start_verdict ll;"
		     "r0 = *(u32 *)(r1 + 0);"
		     "exit;"
		     :
		     : [lookup] "i"(BPF_FUNC_map_lookup_elem));
	__builtin_unreachable();
}

// The jump of 32 bits (gotol), which clang writes with -mcpu=v4 where 16 do not reach. Linux 6.6.
MEMBER(long_jump, PASS);

SEC(HOOK)
int long_jump(CTX *ctx)
{
	__u64 value = 1, length = LENGTH(ctx);

	COUNT(long_jump);
	asm volatile("if %[length] > 64 goto +1;"
		     ".byte 0x06, 0, 0, 0, 1, 0, 0, 0;" // gotol +1
		     "%[value] = 2"
		     : [value] "+r"(value)
		     : [length] "r"(length));
	result->value = value;
	return long_jump_verdict;
}
