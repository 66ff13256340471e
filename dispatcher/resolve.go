// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/netns"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// DefaultRoute stands for the interface of the default route, the IPv4 one if there is one, else the IPv6 one.
const DefaultRoute = "@default-route"

// Resolve returns the points of a hook in the current network namespace, one per interface, in the order written and
// each once. A name that does not exist is an *InterfaceError.
func Resolve(h volume.Hook) ([]Point, error) {
	cookie, err := netns.Cookie()
	if err != nil {
		return nil, err
	}
	var direction volume.Direction
	if tc, ok := h.(*volume.TC); ok {
		direction = tc.Direction
	}
	var points []Point
	for _, name := range volume.Interfaces(h) {
		found, err := interfaces(name)
		if err != nil {
			return nil, err
		}
		for _, l := range found {
			p := Point{Kind: h.Kind(), Direction: direction, NetNS: cookie, IfIndex: l.Index, Interface: l.Name}
			if !slices.Contains(points, p) {
				points = append(points, p)
			}
		}
	}
	return points, nil
}

func interfaces(name string) ([]*net.Interface, error) {
	if name != DefaultRoute {
		l, err := net.InterfaceByName(name)
		if err != nil {
			return nil, missing(name, err)
		}
		return []*net.Interface{l}, nil
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		indexes, err := defaultRoute(family)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", DefaultRoute, err)
		}
		var found []*net.Interface
		for _, index := range indexes {
			l, err := net.InterfaceByIndex(index)
			if err != nil {
				return nil, fmt.Errorf("interface %s: %w", DefaultRoute, err)
			}
			found = append(found, l)
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, missing(DefaultRoute, nil)
}

// missing tells an interface that does not exist from a failure to ask.
func missing(name string, cause error) error {
	all, err := net.Interfaces()
	if err != nil {
		return errors.Join(cause, err)
	}
	e := &InterfaceError{Name: name}
	for _, l := range all {
		e.Existing = append(e.Existing, l.Name)
	}
	slices.Sort(e.Existing)
	return e
}

func exists(index int) bool {
	_, err := net.InterfaceByIndex(index)
	return err == nil
}

// defaultRoute returns the interfaces of the main table's default route of the lowest metric: several if it has several
// next hops.
func defaultRoute(family int) ([]int, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
	routes, err := netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var best *netlink.Route
	for i, r := range routes {
		toAll := r.Dst == nil || r.Dst.IP.IsUnspecified() && isZero(r.Dst.Mask)
		if toAll && r.Type == unix.RTN_UNICAST && (best == nil || r.Priority < best.Priority) {
			best = &routes[i]
		}
	}
	if best == nil {
		return nil, nil
	}
	var indexes []int
	if best.LinkIndex > 0 {
		indexes = append(indexes, best.LinkIndex)
	}
	for _, hop := range best.MultiPath {
		if !slices.Contains(indexes, hop.LinkIndex) {
			indexes = append(indexes, hop.LinkIndex)
		}
	}
	return indexes, nil
}

func isZero(mask net.IPMask) bool {
	ones, _ := mask.Size()
	return ones == 0
}
