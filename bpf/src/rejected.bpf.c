// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Reads a packet without asking how long it is, after a loop that makes the verifier's log longer than 1 MiB.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("xdp")
int rejected(struct xdp_md *ctx)
{
	volatile __u32 sum = 0;

	for (int i = 0; i < 8192; i++)
		sum += *(volatile __u32 *)&ctx->rx_queue_index;
	return sum + *(__u8 *)(long)ctx->data;
}
