// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Members that the loader must adapt to the kernel, and those that call functions of the kernel (kfuncs).

#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "member.h"

// A value that the loader fills in.
MEMBER(kconfig, PASS);

extern unsigned int LINUX_KERNEL_VERSION __kconfig;

SEC(HOOK)
int kconfig(CTX *ctx)
{
	COUNT(kconfig);
	result->value = LINUX_KERNEL_VERSION;
	return kconfig_verdict;
}

// The address of something of the kernel's.
MEMBER(ksym, PASS);

extern void bpf_prog_put __ksym;

SEC(HOOK)
int ksym(CTX *ctx)
{
	COUNT(ksym);
	result->value = (__u64)&bpf_prog_put;
	return ksym_verdict;
}

// Fields of the kernel's structures, which lie elsewhere than here.
MEMBER(core, PASS);

struct task_struct___member {
	__u32 flags;
	struct task_struct___member *group_leader;
	int tgid;
} __attribute__((preserve_access_index));

struct no_such_struct {
	int field;
} __attribute__((preserve_access_index));

SEC(HOOK)
int core(CTX *ctx)
{
	struct task_struct___member *task = (void *)bpf_get_current_task();

	COUNT(core);
	if (!bpf_core_field_exists(task->tgid) || bpf_core_type_exists(struct no_such_struct))
		return FAILED;
	result->value = BPF_CORE_READ(task, group_leader, tgid);
	return core_verdict;
}

// A function that this kernel does not have, and code for that.
MEMBER(weak, PASS);

extern int bpf_no_such_kfunc(int n) __ksym __weak;

SEC(HOOK)
int weak(CTX *ctx)
{
	COUNT(weak);
	result->value = bpf_no_such_kfunc ? bpf_no_such_kfunc(1) : 1;
	return weak_verdict;
}

// Functions of the kernel (kfuncs). An iterator keeps its state on the stack. Linux 6.4.
MEMBER(iterator, PASS);

struct bpf_iter_num {
	__u64 __opaque[1];
} __attribute__((aligned(8)));

extern int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end) __ksym;
extern int *bpf_iter_num_next(struct bpf_iter_num *it) __ksym;
extern void bpf_iter_num_destroy(struct bpf_iter_num *it) __ksym;

SEC(HOOK)
int iterator(CTX *ctx)
{
	struct bpf_iter_num it;
	__u64 sum = 0;
	int *n;

	COUNT(iterator);
	bpf_iter_num_new(&it, 0, 10);
	while ((n = bpf_iter_num_next(&it)))
		sum += *n;
	bpf_iter_num_destroy(&it);
	result->value = sum;
	return iterator_verdict;
}

// The kernel's own context, read by its BTF, and its device, read as what it is said to be. Linux 6.2.
MEMBER(kernel_ctx, PASS);

struct net_device {
	int ifindex;
} __attribute__((preserve_access_index));

struct xdp_rxq_info {
	struct net_device *dev;
} __attribute__((preserve_access_index));

struct xdp_buff {
	struct xdp_rxq_info *rxq;
} __attribute__((preserve_access_index));

struct sk_buff {
	struct net_device *dev;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;
extern void *bpf_rdonly_cast(void *object, __u32 btf_id) __ksym;

SEC(HOOK)
int kernel_ctx(CTX *ctx)
{
	struct net_device *dev;
	KERNEL_CTX *kctx;

	COUNT(kernel_ctx);
	kctx = bpf_cast_to_kern_ctx(ctx);
	dev = bpf_rdonly_cast(kctx->DEVICE, bpf_core_type_id_kernel(struct net_device));
	result->value = dev->ifindex;
	return kernel_ctx_verdict;
}

// Reads the packet by a dynptr. Linux 6.4.
MEMBER(dynptr, PASS);

struct l2 {
	__u8 addresses[12];
	__be16 proto;
};

extern int DYNPTR_FROM(CTX *ctx, __u64 flags, struct bpf_dynptr *ptr) __ksym;
extern void *bpf_dynptr_slice(const struct bpf_dynptr *ptr, __u32 offset, void *buffer, __u32 size) __ksym;

SEC(HOOK)
int dynptr(CTX *ctx)
{
	struct bpf_dynptr packet;
	struct l2 buffer, *l2;

	COUNT(dynptr);
	if (DYNPTR_FROM(ctx, 0, &packet))
		return FAILED;
	l2 = bpf_dynptr_slice(&packet, 0, &buffer, sizeof(buffer));
	if (!l2)
		return FAILED;
	result->value = bpf_ntohs(l2->proto);
	return dynptr_verdict;
}

// A function of a module, which has BTF of its own, where nf_conntrack is one. The connection that it looks for does not
// exist.
MEMBER(conntrack, PASS);

struct nf_conn {
	unsigned long status;
};

struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

extern struct nf_conn *CT_LOOKUP(CTX *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_size, struct bpf_ct_opts *opts,
				 __u32 opts_size) __ksym;
extern void bpf_ct_release(struct nf_conn *conn) __ksym;

SEC(HOOK)
int conntrack(CTX *ctx)
{
	struct bpf_ct_opts opts = {.netns_id = BPF_F_CURRENT_NETNS, .l4proto = IPPROTO_UDP};
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *conn;

	COUNT(conntrack);
	conn = CT_LOOKUP(ctx, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
	if (conn) {
		bpf_ct_release(conn);
		return FAILED;
	}
	result->value = -opts.error;
	return conntrack_verdict;
}
