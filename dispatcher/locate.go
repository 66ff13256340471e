// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/netns"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Place is where a point is now, seen from the calling thread.
type Place struct {
	// NetNS leads to the network namespace, as in nsenter --net=PATH; empty if it is the caller's own.
	NetNS string
	// Interface is the name that the interface has now; empty if it is not in that namespace any more.
	Interface string
}

// Locate finds the network namespace of a point and the interface in it, whatever they are called now. found is false if
// no process and no mount holds the namespace: then it is gone, or nobody can look into it.
func (d *Dispatcher) Locate(p Point) (place Place, found bool, err error) {
	here, err := netns.Cookie()
	if err != nil {
		return Place{}, false, err
	}
	found, err = d.namespaces.do(p.NetNS, func() error {
		if p.NetNS != here {
			place.NetNS = netnsPath()
		}
		l, err := netlink.LinkByIndex(p.IfIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		place.Interface = l.Attrs().Name
		return nil
	})
	return place, found, err
}

// hasMoved reports whether the interface that the link of a point is on has moved to another network namespace: the link
// goes with it. Where it is has no name in a link, so the point's own place is looked at; if nobody can look into its
// namespace, the caller's, since an interface of a namespace that ends goes back to that of the machine.
func (s *site) hasMoved() (bool, error) {
	l, err := (bpfLink{}).open(s)
	if l == nil || err != nil {
		return false, err
	}
	defer l.Close()
	if l.ifindex == 0 {
		return false, nil
	}
	there := false
	found, err := s.inNetNS(func() (err error) {
		there, err = s.carries(s.IfIndex, l)
		return err
	})
	if found || err != nil {
		return found && !there, err
	}
	return s.carries(int(l.ifindex), l)
}

// carries reports whether the link is on an interface of the calling thread's network namespace.
func (s *site) carries(index int, l *linkState) (bool, error) {
	if s.Kind == volume.KindXDP {
		i, err := netlink.LinkByIndex(index)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("%s: %w", s.Point, err)
		}
		// With another one in hardware, the kernel names none of them there.
		xdp := i.Attrs().Xdp
		return xdp != nil && xdp.Attached && (xdp.ProgId == 0 || xdp.ProgId == uint32(l.program)), nil
	}
	q, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: s.tcxAttach()})
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("%s: %w", s.Point, err)
	}
	return slices.ContainsFunc(q.Programs, func(p link.AttachedProgram) bool {
		id, ok := p.LinkID()
		return ok && id == l.id
	}), nil
}

// netnsPath returns a path of the calling thread's network namespace: where it is mounted, by a name that somebody chose,
// else that of a process.
func netnsPath() string {
	own, err := os.Readlink(ownNetNS)
	if err != nil {
		return ""
	}
	for _, list := range []iter.Seq2[string, string]{netnsMounts, netnsOfProcesses} {
		for path, inode := range list {
			if inode == own {
				return path
			}
		}
	}
	return ""
}
