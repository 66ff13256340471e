// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

var xdpFlags = map[volume.XDPMode]link.XDPAttachFlags{
	volume.XDPNative:  link.XDPDriverMode,
	volume.XDPGeneric: link.XDPGenericMode,
}

// startXDP attaches by a bpf_link, which the kernel gives only to an interface without XDP program: a foreign one is in
// no danger even if it comes at the same moment.
func (s *site) startXDP(prog *ebpf.Program, mode volume.XDPMode) error {
	modes := []volume.XDPMode{mode}
	if mode == volume.XDPAuto || mode == "" {
		modes = []volume.XDPMode{volume.XDPNative, volume.XDPGeneric}
	}
	var failed error // of all modes, in one line
	for _, mode := range modes {
		flags, ok := xdpFlags[mode]
		if !ok {
			return fmt.Errorf("%s: unknown mode %q", s.Point, mode)
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: s.IfIndex, Flags: flags})
		if err == nil {
			return s.keep(l, pointRecord{Carrier: carrierXDP, Mode: mode})
		}
		switch {
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
			if foreign := s.foreignXDP(); foreign != nil {
				return foreign
			}
		case errors.Is(err, unix.EINVAL) && !exists(s.IfIndex):
			return missing(s.Interface, err)
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOMEM):
			return fmt.Errorf("%s: %w", s.Point, err)
		case errors.Is(err, unix.EOPNOTSUPP):
			err = fmt.Errorf("%w by the interface's driver", ebpf.ErrNotSupported)
		}
		if failed == nil {
			failed = fmt.Errorf("%s mode: %w", mode, err)
		} else {
			failed = fmt.Errorf("%w; %s mode: %w", failed, mode, err)
		}
	}
	if mode == volume.XDPNative {
		return fmt.Errorf("%s: %w; use mode auto or generic", s.Point, failed)
	}
	return fmt.Errorf("%s: %w", s.Point, failed)
}

// foreignXDP asks which program has the interface; nil if none has. It is called after the kernel refused: asking before
// would cost every attachment, and prove nothing.
func (s *site) foreignXDP() error {
	l, err := netlink.LinkByIndex(s.IfIndex)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Point, err)
	}
	xdp := l.Attrs().Xdp
	if xdp == nil || !xdp.Attached {
		return nil
	}
	return s.foreign(ebpf.ProgramID(xdp.ProgId))
}

// xdpProgram returns the program that the interface has; 0 if it has none, or there is no interface.
func (s *site) xdpProgram() (ebpf.ProgramID, error) {
	l, err := netlink.LinkByIndex(s.IfIndex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("%s: %w", s.Point, err)
	}
	if l.Attrs().Xdp == nil {
		return 0, nil
	}
	return ebpf.ProgramID(l.Attrs().Xdp.ProgId), nil
}

func (s *site) foreign(id ebpf.ProgramID) *ForeignError {
	e := &ForeignError{Point: s.Point, ID: id}
	e.Name = programName(id)
	return e
}

// programName returns the name of a loaded program, at most 15 bytes; "" if it is gone.
func programName(id ebpf.ProgramID) string {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return ""
	}
	return info.Name
}
