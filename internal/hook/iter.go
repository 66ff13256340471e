// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// attachIter makes an iterator of the target that the program was loaded for: CheckTarget is what finds that it is
// missing. It runs whenever somebody opens the link's pin and reads.
func attachIter(prog *ebpf.Program, h *volume.Iter) (link.Link, error) {
	if err := wantType(prog, ebpf.Tracing); err != nil {
		return nil, err
	}
	var order uint32
	if h.Target == "cgroup" {
		order = 2 // BPF_CGROUP_ITER_DESCENDANTS_PRE: all, from the root. No order is no default there.
	}
	l, err := linkIter(prog, order)
	if err != nil {
		return nil, fmt.Errorf("iterator %s: %w", quote(h.Target), err)
	}
	return l, nil
}
