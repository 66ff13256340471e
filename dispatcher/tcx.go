// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// startTCX attaches by a TCX link, behind the programs of others that are there already. Wraps ebpf.ErrNotSupported
// before Linux 6.6.
func (s *site) startTCX(prog *ebpf.Program) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: s.IfIndex, Program: prog, Attach: s.tcxAttach()})
	if errors.Is(err, unix.ENODEV) {
		return missing(s.Interface, err)
	} else if err != nil {
		return fmt.Errorf("%s: %w", s.Point, err)
	}
	return s.keep(l, pointRecord{Carrier: carrierTCX})
}

func (s *site) tcxAttach() ebpf.AttachType {
	if s.Direction == volume.Egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}
