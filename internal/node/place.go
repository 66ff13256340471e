// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"

	"github.com/bpfvol/bpfvol/dispatcher"
)

// Interface is where a shared point is, as seen by who asks.
type Interface struct {
	// Name is what the interface is called now; or was last, if it is gone or nobody can look.
	Name  string `json:"name"`
	Index int    `json:"index"`
	// AttachedAs is the name that it had when the first program attached, if it was renamed since.
	AttachedAs string `json:"attachedAs,omitempty"`
	// NetNS is its network namespace; zero if that is the caller's own.
	NetNS NetNS `json:"netns,omitzero"`
}

// NetNS is a network namespace.
type NetNS struct {
	Path   string `json:"path,omitempty"` // for nsenter --net=PATH; empty if no path leads there
	Cookie uint64 `json:"cookie"`         // SO_NETNS_COOKIE, which no other has until the next reboot
}

// look finds out where a shared point is now, and what is wrong with it; zero if nothing is.
func (e *Engine) look(s dispatcher.PointStatus) (Interface, Problem) {
	i := Interface{Name: s.Interface, Index: s.IfIndex}
	place, found, err := e.points.Locate(s.Point)
	if !found || place.NetNS != "" {
		i.NetNS = NetNS{Path: place.NetNS, Cookie: s.NetNS}
	}
	switch {
	case s.Moved:
		return i, Problem{InterfaceMoved, "the interface moved to another network namespace, and what runs there with it"}
	case !s.Severed:
		if place.Interface != "" && place.Interface != s.Interface {
			i.Name, i.AttachedAs = place.Interface, s.Interface
		}
		return i, Problem{}
	case err != nil:
		return i, Problem{Unknown, "nothing runs: " + err.Error()}
	case s.Foreign.ID != 0:
		return i, Problem{ForeignProgram, fmt.Sprintf("nothing runs: program %.32q (id %d), which is not bpfvol's, took the place", s.Foreign.Name, s.Foreign.ID)}
	case !found:
		return i, Problem{InterfaceGone, "nothing runs: no process is left in its network namespace"}
	case place.Interface == s.Interface:
		return i, Problem{LinkSevered, "nothing runs: somebody detached it"}
	}
	return i, Problem{InterfaceGone, "nothing runs: the interface is gone"} // another one may have its index
}

// pointAt is a point in words, with the name that its interface has now.
func pointAt(p dispatcher.Point, i Interface) string {
	p.Interface = i.Name
	return p.String()
}

// compareInterfaces puts those of the caller's own network namespace first, and no interface last.
func compareInterfaces(a, b Interface) int {
	if none := (Interface{}); a == none || b == none {
		return cmp.Compare(b.Index, a.Index) // an index is at least 1
	}
	return cmp.Or(cmp.Compare(a.NetNS.Path, b.NetNS.Path), cmp.Compare(a.NetNS.Cookie, b.NetNS.Cookie), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Index, b.Index))
}
