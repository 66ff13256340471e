// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

var netfilterFamilies = map[string]link.NetfilterProtocolFamily{"ipv4": link.NetfilterProtoIPv4, "ipv6": link.NetfilterProtoIPv6}

var netfilterHooks = map[string]link.NetfilterInetHook{
	"preRouting":  link.NetfilterInetPreRouting,
	"localIn":     link.NetfilterInetLocalIn,
	"forward":     link.NetfilterInetForward,
	"localOut":    link.NetfilterInetLocalOut,
	"postRouting": link.NetfilterInetPostRouting,
}

// defragment is BPF_F_NETFILTER_IP_DEFRAG (include/uapi/linux/bpf.h). link.NetfilterIPDefrag of cilium/ebpf 0.22 is 0.
const defragment = 1

// attachNetfilter attaches to a netfilter hook of the calling thread's network namespace.
func attachNetfilter(prog *ebpf.Program, h *volume.Netfilter) (link.Link, error) {
	if err := wantType(prog, ebpf.Netfilter); err != nil {
		return nil, err
	}
	family, hook := netfilterFamilies[h.Family], netfilterHooks[h.Hook]
	if family == 0 {
		return nil, fmt.Errorf("netfilter family %s: neither ipv4 nor ipv6", quote(h.Family))
	}
	options := link.NetfilterOptions{Program: prog, ProtocolFamily: family, Hook: hook, Priority: int32(h.Priority)}
	if h.Defrag {
		options.NetfilterFlags = defragment
	}
	l, err := link.AttachNetfilter(options)
	where := fmt.Sprintf("netfilter %s %s", h.Family, h.Hook)
	switch { // net/netfilter/nf_bpf_link.c, net/netfilter/core.c
	case errors.Is(err, unix.EBUSY):
		return nil, unfit("%s: something has priority %d there, and no two may have the same; choose another", where, h.Priority)
	case errors.Is(err, unix.ENOENT) && h.Defrag:
		text := fmt.Sprintf("%s: the kernel module nf_defrag_%s is missing, which defrag needs; load it, or leave defrag out", where, h.Family)
		return nil, &worded{text, []error{ebpf.ErrNotSupported}}
	case errors.Is(err, unix.E2BIG):
		return nil, full(where, 1024, "use another hook")
	case err != nil:
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return l, nil
}
