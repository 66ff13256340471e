// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Members that are special for the memory they use.

#include "member.h"

// Counts as most programs do: per CPU, no atomics.
RESULT(counter, BPF_MAP_TYPE_PERCPU_ARRAY);
const volatile int counter_verdict = PASS;

SEC(HOOK)
int counter(CTX *ctx)
{
	__u32 index = 0;
	struct result *result = bpf_map_lookup_elem(&counter_result, &index);

	if (!result)
		return FAILED;
	result->packets++;
	result->value += LENGTH(ctx);
	return counter_verdict;
}

// Variables of .data and .bss, one of which has no name outside.
MEMBER(globals, PASS);

__u64 globals_step = 3;
__u64 globals_total;
static volatile __u64 globals_hidden = 1;

SEC(HOOK)
int globals(CTX *ctx)
{
	COUNT(globals);
	globals_total += globals_step;
	globals_hidden++;
	result->value = globals_total + globals_hidden;
	return globals_verdict;
}

// A value with a lock.
MEMBER(spin_lock, PASS);

struct locked {
	struct bpf_spin_lock lock;
	__u64 packets;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct locked);
} spin_lock_locked SEC(".maps");

SEC(HOOK)
int spin_lock(CTX *ctx)
{
	__u32 index = 0;
	struct locked *locked;

	COUNT(spin_lock);
	locked = bpf_map_lookup_elem(&spin_lock_locked, &index);
	if (!locked)
		return FAILED;
	bpf_spin_lock(&locked->lock);
	locked->packets++;
	result->value = locked->packets;
	bpf_spin_unlock(&locked->lock);
	return spin_lock_verdict;
}

// Counts a packet, with the first word of a stack as key: no other slot is needed.
static __always_inline struct result *counted_by(void *map, volatile __u64 *stack)
{
	struct result *result;

	stack[0] = 0;
	result = bpf_map_lookup_elem(map, (void *)stack);
	if (result)
		__sync_fetch_and_add(&result->packets, 1);
	return result;
}

// Returns 0 + 1 + ... + n-1, having written and read every word.
static __always_inline __u64 sum_of_words(volatile __u64 *stack, int n)
{
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < n; i++)
		stack[i] = i;
#pragma unroll
	for (int i = 0; i < n; i++)
		sum += stack[i];
	return sum;
}

static __noinline __u64 sum_of_four(__u64 n)
{
	volatile __u64 stack[4];

	return sum_of_words(stack, 4) + n;
}

// Every byte of the stack, which has 512: clang gives 504, and none as it is.
MEMBER(full_stack, PASS);

SEC(HOOK)
int full_stack(CTX *ctx)
{
	volatile __u64 stack[63];
	struct result *result = counted_by(&full_stack_result, stack);
	__u64 sum, last;

	if (!result)
		return FAILED;
	asm volatile("*(u64 *)(r10 - 512) = %0" : : "r"(63L) : "memory");
	sum = sum_of_words(stack, 63);
	asm volatile("%0 = *(u64 *)(r10 - 512)" : "=r"(last) : : "memory");
	result->value = sum + last;
	return full_stack_verdict;
}

// All but the last eight bytes.
MEMBER(snug_stack, PASS);

SEC(HOOK)
int snug_stack(CTX *ctx)
{
	volatile __u64 stack[63];
	struct result *result = counted_by(&snug_stack_result, stack);

	if (!result)
		return FAILED;
	result->value = sum_of_words(stack, 63);
	return snug_stack_verdict;
}

// The whole stack together with that of a function: 480 bytes and 32.
MEMBER(deep_stack, PASS);

SEC(HOOK)
int deep_stack(CTX *ctx)
{
	volatile __u64 stack[60];
	struct result *result = counted_by(&deep_stack_result, stack);

	if (!result)
		return FAILED;
	result->value = sum_of_four(sum_of_words(stack, 60));
	return deep_stack_verdict;
}

// All but the last eight bytes together with that of a function: 472 bytes and 32.
MEMBER(snug_deep_stack, PASS);

SEC(HOOK)
int snug_deep_stack(CTX *ctx)
{
	volatile __u64 stack[59];
	struct result *result = counted_by(&snug_deep_stack_result, stack);

	if (!result)
		return FAILED;
	result->value = sum_of_four(sum_of_words(stack, 59));
	return snug_deep_stack_verdict;
}
