// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the BPF objects that come with bpfvol: Count, the example that the demo and the documentation use,
// and small ones that tests load; package members has more of those. Each is compiled, with BTF, from the C source of
// its name in src:
//
//	go generate ./bpf/...    # needs clang, llvm and libbpf-dev
//
// The objects are committed, so that building and testing bpfvol needs no compiler. The linker leaves out those that a
// binary does not ask for.
//
// Invariants: the objects were made from the sources as they are (TestObjectsAreCurrent), and the kernel takes each but
// the one that it should reject (TestKernelLoadsObjects, TestVerifierRejectsWithAHugeLog).
package bpf

import _ "embed"

//go:generate go run generate.go

// The objects are strings so that every caller gets bytes of his own.
var (
	//go:embed count.bpf.o
	count string
	//go:embed counter.bpf.o
	counter string
	//go:embed pass.bpf.o
	pass string
	//go:embed pass_bigendian.bpf.o
	passBigEndian string
	//go:embed drop.bpf.o
	drop string
	//go:embed firewall.bpf.o
	firewall string
	//go:embed hooks.bpf.o
	hooks string
	//go:embed sections.bpf.o
	sections string
	//go:embed network.bpf.o
	network string
	//go:embed two.bpf.o
	two string
	//go:embed pinned.bpf.o
	pinned string
	//go:embed rejected.bpf.o
	rejected string
	//go:embed types.bpf.o
	types string
	//go:embed variables.bpf.o
	variables string
)

// Count counts packets by sender and protocol, and execve calls by command.
//
// Programs: count (xdp), count_out (tc), on_exec (tracepoint syscalls/sys_enter_execve).
// Maps: flows (LRU hash), totals (per-CPU array), execs (hash), events (ring buffer). Variable: sample_rate.
func Count() []byte { return []byte(count) }

// Counter counts packets and lets them pass. Program: counter (xdp). Map: packets (per-CPU array).
func Counter() []byte { return []byte(counter) }

// Pass lets packets pass. Programs: pass (xdp, XDP_PASS), pass_tc (tc, TC_ACT_OK).
func Pass() []byte { return []byte(pass) }

// PassBigEndian is Pass for machines of the other byte order.
func PassBigEndian() []byte { return []byte(passBigEndian) }

// Drop drops packets. Programs: drop (xdp, XDP_DROP), drop_tc (tc, TC_ACT_SHOT).
func Drop() []byte { return []byte(drop) }

// Firewall drops UDP packets to one port.
//
// Programs: firewall (xdp), firewall_tc (tc). Map: dropped (per-CPU array). Variable: closed_port.
func Firewall() []byte { return []byte(firewall) }

// Hooks has a program for each hook outside the network stack, which counts its runs at its index of the array hits:
//
//	0 on_tracepoint (syscalls/sys_enter_getpgid)   5 on_perf_event
//	1 on_raw_tracepoint (sys_enter)                6 on_ingress (cgroup_skb/ingress)
//	2 on_uprobe                                    7 on_egress (cgroup_skb/egress)
//	3 on_uretprobe                                 8 on_connect (cgroup/connect4; refuses port refused_port)
//	4 on_kprobe (do_unlinkat)
//
// Tracepoint, uprobes and perf event count by attach cookie in the hash cookies, too.
func Hooks() []byte { return []byte(hooks) }

// Sections has a program for each hook that the name of an ELF section can say whole, which counts its runs at its index of
// the array hits:
//
//	0 on_tracepoint (syscalls/sys_enter_getpgid)   6 on_fexit (same)
//	1 on_raw_tracepoint (sys_enter)                7 on_uprobe (malloc of Debian's C library for amd64)
//	2 on_tp_btf (sys_enter)                        8 on_uretprobe (same)
//	3 on_kprobe (security_task_getpgid)            9 on_lsm (task_getpgid)
//	4 on_kretprobe (same)                         10 show_tasks (iterator task; prints process and command)
//	5 on_fentry (same)                            11 on_sk_lookup
func Sections() []byte { return []byte(sections) }

// Network counts in the array hits, too: 0 on_netfilter, 1 on_netkit (primary), 2 on_netkit_peer (peer).
func Network() []byte { return []byte(network) }

// Two has the XDP programs first and second, with the maps first_only, second_only and both.
func Two() []byte { return []byte(two) }

// Pinned has the XDP program pinned, whose map packets asks to be pinned by name.
func Pinned() []byte { return []byte(pinned) }

// Rejected has the XDP program rejected, which the verifier rejects with a log of more than 1 MiB.
func Rejected() []byte { return []byte(rejected) }

// Types has maps of many types, with keys and values of every shape; see src/types.bpf.c. Its XDP program touch uses the
// maps shapes and array. The map ringbuf_unsized has no size.
func Types() []byte { return []byte(types) }

// Variables has global variables of every shape in every data section, and the XDP program report that copies them into
// the map seen and returns the variable verdict; see src/variables.bpf.c.
func Variables() []byte { return []byte(variables) }
