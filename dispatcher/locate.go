// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"iter"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/internal/netns"
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
