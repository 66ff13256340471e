// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// attachment is what an interface says about its XDP program.
type attachment struct {
	id   ebpf.ProgramID // 0: none
	mode volume.XDPMode // "" if the program is neither native nor generic alone
}

func attached(ifindex int) (attachment, error) {
	l, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return attachment{}, ErrNoInterface
	} else if err != nil {
		return attachment{}, err
	}
	xdp := l.Attrs().Xdp
	if xdp == nil || !xdp.Attached {
		return attachment{}, nil
	}
	modes := map[uint32]volume.XDPMode{nl.XDP_ATTACHED_DRV: volume.XDPNative, nl.XDP_ATTACHED_SKB: volume.XDPGeneric}
	a := attachment{ebpf.ProgramID(xdp.ProgId), modes[xdp.AttachMode]}
	if a.mode == "" {
		return a, &ForeignError{ID: a.id, Name: programName(a.id), Why: "it runs in the device, or several programs do"}
	}
	return a, nil
}

// errRaced means that the interface has another program than the one that was to be replaced.
var errRaced = errors.New("the interface's program has changed")

// replace puts a program on an interface in the place of another, in one step: packets meet one of the two. nil stands
// for none. It goes by netlink because libxdp does, and the kernel lets nobody use netlink where a bpf_link is.
func replace(ifindex int, mode volume.XDPMode, old, fresh *ebpf.Program) error {
	flags := map[volume.XDPMode]uint32{volume.XDPNative: unix.XDP_FLAGS_DRV_MODE, volume.XDPGeneric: unix.XDP_FLAGS_SKB_MODE}[mode]
	if flags == 0 {
		return fmt.Errorf("XDP mode %q is neither native nor generic", mode)
	}
	if old != nil {
		flags |= unix.XDP_FLAGS_REPLACE
	} else {
		flags |= unix.XDP_FLAGS_UPDATE_IF_NOEXIST
	}
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	link := nl.NewIfInfomsg(unix.AF_UNSPEC)
	link.Index = int32(ifindex)
	request.AddData(link)
	xdp := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
	xdp.AddRtAttr(unix.IFLA_XDP_FD, descriptor(fresh))
	xdp.AddRtAttr(unix.IFLA_XDP_FLAGS, binary.NativeEndian.AppendUint32(nil, flags))
	if old != nil {
		xdp.AddRtAttr(unix.IFLA_XDP_EXPECTED_FD, descriptor(old))
	}
	request.AddData(xdp)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	switch {
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EBUSY):
		return errRaced
	case errors.Is(err, unix.ENODEV):
		return ErrNoInterface
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s mode: %w by the interface's driver", mode, ebpf.ErrNotSupported)
	case err != nil:
		return fmt.Errorf("%s mode: %w", mode, err)
	}
	return nil
}

// descriptor is a program's, or -1 for none.
func descriptor(prog *ebpf.Program) []byte {
	fd := -1
	if prog != nil {
		fd = prog.FD()
	}
	return binary.NativeEndian.AppendUint32(nil, uint32(int32(fd)))
}
