// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// One program for each hook that the name of an ELF section can say whole, each counting its runs in the map hits.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum hook {
	TRACEPOINT,
	RAW_TRACEPOINT,
	TP_BTF,
	KPROBE,
	KRETPROBE,
	FENTRY,
	FEXIT,
	UPROBE,
	URETPROBE,
	LSM,
	ITER,
	SK_LOOKUP,
	HOOKS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HOOKS);
	__type(key, __u32); // enum hook
	__type(value, __u64);
} hits SEC(".maps");

static __always_inline int hit(enum hook hook)
{
	__u32 index = hook;
	__u64 *count = bpf_map_lookup_elem(&hits, &index);

	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_getpgid")
int on_tracepoint(void *ctx)
{
	return hit(TRACEPOINT);
}

SEC("raw_tracepoint/sys_enter")
int on_raw_tracepoint(void *ctx)
{
	return hit(RAW_TRACEPOINT);
}

SEC("tp_btf/sys_enter")
int on_tp_btf(void *ctx)
{
	return hit(TP_BTF);
}

SEC("kprobe/security_task_getpgid")
int on_kprobe(void *ctx)
{
	return hit(KPROBE);
}

SEC("kretprobe/security_task_getpgid")
int on_kretprobe(void *ctx)
{
	return hit(KRETPROBE);
}

SEC("fentry/security_task_getpgid")
int on_fentry(void *ctx)
{
	return hit(FENTRY);
}

SEC("fexit/security_task_getpgid")
int on_fexit(void *ctx)
{
	return hit(FEXIT);
}

SEC("uprobe//usr/lib/x86_64-linux-gnu/libc.so.6:malloc")
int on_uprobe(void *ctx)
{
	return hit(UPROBE);
}

SEC("uretprobe//usr/lib/x86_64-linux-gnu/libc.so.6:malloc")
int on_uretprobe(void *ctx)
{
	return hit(URETPROBE);
}

SEC("lsm/task_getpgid")
int on_lsm(void *ctx)
{
	hit(LSM);
	return 0; // the verifier wants to see it
}

// What the kernel's own types have of use here, wherever in them it is.
struct task_struct {
	int tgid;
	char comm[16];
} __attribute__((preserve_access_index));

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __attribute__((preserve_access_index));

SEC("iter/task")
int show_tasks(struct bpf_iter__task *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;

	if (!task)
		return 0;
	BPF_SEQ_PRINTF(seq, "%d %s\n", task->tgid, task->comm);
	hit(ITER);
	return 0;
}

SEC("sk_lookup")
int on_sk_lookup(struct bpf_sk_lookup *ctx)
{
	hit(SK_LOOKUP);
	return SK_PASS;
}
