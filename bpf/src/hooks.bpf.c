// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// One program for each hook that is not of the network stack, each counting its runs in the map hits.

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// on_connect refuses connections to this port; 0 refuses none.
const volatile __u16 refused_port = 0;

enum hook {
	TRACEPOINT,
	RAW_TRACEPOINT,
	UPROBE,
	URETPROBE,
	KPROBE,
	PERF_EVENT,
	CGROUP_INGRESS,
	CGROUP_EGRESS,
	CGROUP_CONNECT4,
	HOOKS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HOOKS);
	__type(key, __u32); // enum hook
	__type(value, __u64);
} hits SEC(".maps");

// By the attachment's cookie.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u64);
} cookies SEC(".maps");

static __always_inline void hit(enum hook hook)
{
	__u32 index = hook;
	__u64 *count = bpf_map_lookup_elem(&hits, &index);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void hit_cookie(void *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx), one = 1, *count;

	count = bpf_map_lookup_elem(&cookies, &cookie);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&cookies, &cookie, &one, BPF_ANY);
}

SEC("tracepoint/syscalls/sys_enter_getpgid")
int on_tracepoint(void *ctx)
{
	hit(TRACEPOINT);
	hit_cookie(ctx);
	return 0;
}

SEC("raw_tracepoint/sys_enter")
int on_raw_tracepoint(void *ctx)
{
	hit(RAW_TRACEPOINT);
	return 0;
}

SEC("uprobe")
int on_uprobe(void *ctx)
{
	hit(UPROBE);
	hit_cookie(ctx);
	return 0;
}

SEC("uretprobe")
int on_uretprobe(void *ctx)
{
	hit(URETPROBE);
	hit_cookie(ctx);
	return 0;
}

SEC("kprobe/do_unlinkat")
int on_kprobe(void *ctx)
{
	hit(KPROBE);
	return 0;
}

SEC("perf_event")
int on_perf_event(void *ctx)
{
	hit(PERF_EVENT);
	hit_cookie(ctx);
	return 0;
}

SEC("cgroup_skb/ingress")
int on_ingress(struct __sk_buff *skb)
{
	hit(CGROUP_INGRESS);
	return 1;
}

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	hit(CGROUP_EGRESS);
	return 1;
}

SEC("cgroup/connect4")
int on_connect(struct bpf_sock_addr *ctx)
{
	hit(CGROUP_CONNECT4);
	return !refused_port || ctx->user_port != bpf_htons(refused_port);
}
