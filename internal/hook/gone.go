// SPDX-License-Identifier: Apache-2.0

package hook

import "github.com/cilium/ebpf/link"

// Gone says what is gone that a link was attached to, so that its program does not run any more; "" if it still is there.
// The kernel clears what a link's info names. Of a netfilter hook it does not tell; probes and the like do not go away.
func Gone(info *link.Info) string {
	if n := info.Netkit(); n != nil && n.Ifindex == 0 {
		return "the interface is gone"
	}
	if n := info.NetNs(); n != nil && n.NetnsInode == 0 {
		return "the network namespace is gone"
	}
	if c := info.Cgroup(); c != nil && c.CgroupId == 0 {
		return "the cgroup is gone"
	}
	return ""
}
