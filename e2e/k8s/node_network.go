// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The addresses mean something in the node's namespaces alone.
var (
	nodeNetwork    = netip.MustParsePrefix("10.250.0.0/24")
	worldAddress   = netip.MustParseAddr("10.250.0.1")
	NodeAddress    = netip.MustParseAddr("10.250.0.2")
	podNetwork     = netip.MustParsePrefix("10.251.0.0/24")
	serviceNetwork = netip.MustParsePrefix("10.252.0.0/24")
	// serviceAddress is that of the service kubernetes.default. The API server itself has it, so that pods reach it though
	// nobody makes services work.
	serviceAddress  = netip.MustParseAddr("10.252.0.1")
	apiAddress      = netip.AddrPortFrom(NodeAddress, 443)
	registryAddress = netip.AddrPortFrom(NodeAddress, 5000)
)

// World is the network beyond the node's only interface, eth0. Nothing but the test sends packets there.
type World struct{ space *space }

// newWorld makes a network namespace and a cable from it to the node.
func newWorld(node *space) (*World, error) {
	w := &World{space: newSpace()}
	var ns *os.File
	err := w.space.do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		w.close()
		return nil, err
	}
	defer ns.Close()
	err = node.do(func() error {
		if err := up("lo", netip.PrefixFrom(serviceAddress, 32)); err != nil {
			return err
		}
		cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}
		if err := netlink.LinkAdd(cable); err != nil {
			return fmt.Errorf("make eth0: %w", err)
		}
		if err := up("eth0", netip.PrefixFrom(NodeAddress, nodeNetwork.Bits())); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: worldAddress.AsSlice()}); err != nil {
			return fmt.Errorf("default route: %w", err)
		}
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) // for the pods
	})
	if err == nil {
		err = w.space.do(func() error { return up("eth0", netip.PrefixFrom(worldAddress, nodeNetwork.Bits())) })
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// up turns an interface on, with an address and without IPv6, which would send packets of its own.
func up(name string, address netip.Prefix) error {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil && !os.IsNotExist(err) {
		return err
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}}); err != nil {
		return fmt.Errorf("%s: address %s: %w", name, address, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (w *World) close() { w.space.close() }

// SendUDP sends n datagrams of 18 bytes, 60 with the headers, to port 9 (discard) of the node.
func (w *World) SendUDP(n int) error { return w.SendUDPTo(9, n) }

// SendUDPTo is SendUDP to another port.
func (w *World) SendUDPTo(port uint16, n int) error {
	return w.space.do(func() error {
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.WriteToUDPAddrPort(make([]byte, 18), netip.AddrPortFrom(NodeAddress, port)); err != nil {
				return err
			}
		}
		return nil
	})
}
