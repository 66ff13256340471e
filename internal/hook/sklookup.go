// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// attachSKLookup attaches to the choice of sockets in the calling thread's network namespace.
func attachSKLookup(prog *ebpf.Program) (link.Link, error) {
	if err := wantType(prog, ebpf.SkLookup); err != nil {
		return nil, err
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	l, err := link.AttachNetNs(int(ns.Fd()), prog)
	if errors.Is(err, unix.E2BIG) { // netns_bpf_max_progs, kernel/bpf/net_namespace.c
		return nil, full("skLookup", 64, "do without one of them")
	} else if err != nil {
		return nil, err
	}
	return l, nil
}
