// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Members that consist of more than one function, or call another program.

#include "member.h"

// Static functions, one calling the other, with a stack and with the context.
MEMBER(subprograms, PASS);

static __noinline __u32 thrice(__u32 n)
{
	volatile __u32 parts[3] = {n, n, n};

	return parts[0] + parts[1] + parts[2];
}

static __noinline __u32 length_thrice(CTX *ctx)
{
	volatile __u32 length = LENGTH(ctx);

	return thrice(length) + length - length;
}

SEC(HOOK)
int subprograms(CTX *ctx)
{
	COUNT(subprograms);
	result->value = length_thrice(ctx) + thrice(1);
	return subprograms_verdict;
}

// Global functions, which the verifier checks one by one: of numbers, of the context, of memory.
MEMBER(global_functions, PASS);

struct rectangle {
	__u32 width;
	__u32 height;
};

__noinline int product(__u32 a, __u32 b)
{
	barrier_var(a);
	return a * b;
}

__noinline int area(const struct rectangle *r)
{
	if (!r)
		return -1;
	return product(r->width, r->height);
}

__noinline int length(CTX *ctx)
{
	return LENGTH(ctx);
}

SEC(HOOK)
int global_functions(CTX *ctx)
{
	struct rectangle r = {.width = 2};

	COUNT(global_functions);
	r.height = length(ctx);
	result->value = area(&r);
	return global_functions_verdict;
}

// A callback, which calls a function.
MEMBER(loop, PASS);

static int add_thrice(__u32 i, void *sum)
{
	*(__u64 *)sum += thrice(i);
	return 0;
}

SEC(HOOK)
int loop(CTX *ctx)
{
	__u64 sum = 0;

	COUNT(loop);
	bpf_loop(10, add_thrice, &sum, 0);
	result->value = sum;
	return loop_verdict;
}

// A callback for each element of a map.
MEMBER(each, PASS);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} each_numbers SEC(".maps");

static long add_element(void *map, const __u32 *key, __u64 *number, __u64 *sum)
{
	*number += *key;
	*sum += *number;
	return 0;
}

SEC(HOOK)
int each(CTX *ctx)
{
	__u64 sum = 0;

	COUNT(each);
	bpf_for_each_map_elem(&each_numbers, add_element, &sum, 0);
	result->value = sum;
	return each_verdict;
}

// A callback that runs later, when the program has ended. It starts anew with every packet.
MEMBER(timer, PASS);

struct alarm {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct alarm);
} timer_alarms SEC(".maps");

#define CLOCK_MONOTONIC 1

static int ring(void *map, __u32 *key, struct alarm *alarm)
{
	__u32 index = 0;
	struct result *result = bpf_map_lookup_elem(&timer_result, &index);

	if (result)
		__sync_fetch_and_add(&result->value, 1);
	return 0;
}

SEC(HOOK)
int timer(CTX *ctx)
{
	__u32 index = 0;
	struct alarm *alarm;

	COUNT(timer);
	alarm = bpf_map_lookup_elem(&timer_alarms, &index);
	if (!alarm)
		return FAILED;
	bpf_timer_init(&alarm->timer, &timer_alarms, CLOCK_MONOTONIC); // refused but for the first time
	bpf_timer_set_callback(&alarm->timer, ring);
	if (bpf_timer_start(&alarm->timer, 0, 0))
		return FAILED;
	return timer_verdict;
}

// A tail call through an array that the object fills. The verdict is that of the program called.
MEMBER(tail_target, PASS);

SEC(HOOK)
int tail_target(CTX *ctx)
{
	COUNT(tail_target);
	result->value += LENGTH(ctx);
	return tail_target_verdict;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} tail_targets SEC(".maps") = {
	.values = {
		[1] = (void *)&tail_target,
	},
};

RESULT(tail_call, BPF_MAP_TYPE_ARRAY);

SEC(HOOK)
int tail_call(CTX *ctx)
{
	COUNT(tail_call);
	bpf_tail_call(ctx, &tail_targets, 0); // empty: goes on here
	result->value++;
	bpf_tail_call(ctx, &tail_targets, 1);
	return FAILED;
}

// A tail call in a function: what the program called returns, the function returns.
MEMBER(tail_call_function, PASS);

static __noinline int tail_function(CTX *ctx)
{
	volatile int failed = FAILED; // or the compiler takes the only value that it sees for the result

	bpf_tail_call(ctx, &tail_targets, 1);
	return failed;
}

SEC(HOOK)
int tail_call_function(CTX *ctx)
{
	COUNT(tail_call_function);
	result->value = tail_function(ctx);
	return tail_call_function_verdict;
}

// Ends by an exception, which unwinds every function on the stack. Linux 6.7.
MEMBER(exception, PASS);

extern void bpf_throw(__u64 cookie) __ksym __attribute__((noreturn));

static __noinline __u32 throw_if_longer(CTX *ctx, __u32 length)
{
	if (LENGTH(ctx) > length)
		bpf_throw(exception_verdict);
	return length;
}

SEC(HOOK)
int exception(CTX *ctx)
{
	COUNT(exception);
	result->value = 1;
	result->value = throw_if_longer(ctx, 0);
	return FAILED;
}
