// SPDX-License-Identifier: Apache-2.0

package volume

// CgroupAttachTypes are the values of a cgroup hook's key attach: what libbpf writes after "cgroup/" or "cgroup_" in
// the name of an ELF section (libbpf, src/libbpf.c, section_defs), and "sockops". They are all that the kernel has but
// lsm_cgroup, whose programs cilium/ebpf 0.22 does not load.
var CgroupAttachTypes = []string{
	"skb/ingress", "skb/egress", "dev", "sysctl", "sockops",
	"sock_create", "sock_release", "post_bind4", "post_bind6",
	"bind4", "bind6", "connect4", "connect6", "connect_unix",
	"sendmsg4", "sendmsg6", "sendmsg_unix", "recvmsg4", "recvmsg6", "recvmsg_unix",
	"getpeername4", "getpeername6", "getpeername_unix", "getsockname4", "getsockname6", "getsockname_unix",
	"getsockopt", "setsockopt",
}
