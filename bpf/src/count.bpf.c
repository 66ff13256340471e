// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Counts IPv4 packets by sender and protocol, in (XDP) and out (TC), and execve calls by command. The example of the
// documentation and of the demo.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// Every sample_rate-th packet of a CPU goes to the ring buffer events; 0 sends none.
const volatile __u32 sample_rate = 0;

enum protocol {
	ICMP = 1,
	TCP = 6,
	UDP = 17,
};

enum direction {
	IN,
	OUT,
};

struct flow {
	__be32 saddr;
	enum protocol protocol;
};

struct traffic {
	__u64 packets;
	__u64 bytes;
};

struct event {
	struct flow flow;
	enum direction direction;
	__u32 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 10240);
	__type(key, struct flow);
	__type(value, struct traffic);
} flows SEC(".maps");

// Indexed by enum direction.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct traffic);
} totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, char[16]);
	__type(value, __u64);
} execs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} events SEC(".maps");

static __always_inline void sample(const struct flow *flow, enum direction direction, __u32 bytes)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		return; // full: nobody reads
	event->flow = *flow;
	event->direction = direction;
	event->bytes = bytes;
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void add(const struct flow *flow, enum direction direction, __u32 bytes)
{
	struct traffic *traffic = bpf_map_lookup_elem(&flows, flow);
	__u32 index = direction;

	if (traffic) {
		__sync_fetch_and_add(&traffic->packets, 1);
		__sync_fetch_and_add(&traffic->bytes, bytes);
	} else {
		struct traffic first = {.packets = 1, .bytes = bytes};

		bpf_map_update_elem(&flows, flow, &first, BPF_ANY);
	}

	traffic = bpf_map_lookup_elem(&totals, &index);
	if (!traffic)
		return;
	traffic->packets += 1;
	traffic->bytes += bytes;
	if (sample_rate && traffic->packets % sample_rate == 0)
		sample(flow, direction, bytes);
}

static __always_inline void packet(void *data, void *end, enum direction direction, __u32 bytes)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct flow flow = {};

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return;
	flow.saddr = ip->saddr;
	flow.protocol = ip->protocol;
	add(&flow, direction, bytes);
}

SEC("xdp")
int count(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	packet(data, end, IN, end - data);
	return XDP_PASS;
}

SEC("tc")
int count_out(struct __sk_buff *skb)
{
	packet((void *)(long)skb->data, (void *)(long)skb->data_end, OUT, skb->len);
	return TC_ACT_OK;
}

// The command is that of the caller: the program that is to run does not exist yet.
SEC("tracepoint/syscalls/sys_enter_execve")
int on_exec(void *ctx)
{
	char comm[16] = {};
	__u64 first = 1, *calls;

	bpf_get_current_comm(comm, sizeof(comm));
	calls = bpf_map_lookup_elem(&execs, comm);
	if (calls)
		__sync_fetch_and_add(calls, 1);
	else
		bpf_map_update_elem(&execs, comm, &first, BPF_ANY);
	return 0;
}
