// SPDX-License-Identifier: Apache-2.0

package bpftest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NetNS is a network namespace of its own, without a name: it exists as long as the test holds it.
// Only "lo" is in it, up; IPv6 is off, so that nothing but the test sends packets.
type NetNS struct {
	Addr netip.Addr // of veth0, where Pair made it
	file *os.File
}

// NewNetNS makes a network namespace that goes away when the test ends.
func NewNetNS(t testing.TB) *NetNS {
	t.Helper()
	Root(t)
	ns := new(NetNS)
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		ns.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	t.Cleanup(func() { ns.file.Close() })
	err = ns.Do(func() error {
		for _, conf := range []string{"default", "all"} {
			err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/disable_ipv6", []byte("1"), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6 at all
				return err
			}
		}
		return up("lo")
	})
	if err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	return ns
}

// Path is a name under which this process and its children can open the namespace, for nsenter --net=PATH.
func (ns *NetNS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd()) }

// Do runs f in the namespace. f must stay on its goroutine and not end the test: it returns its error.
func (ns *NetNS) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
}

// onThread runs f on an OS thread of its own that may change its network namespace. The goroutine never unlocks the
// thread, so it ends with it and no other goroutine finds itself in the wrong namespace.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// Veth makes a pair of interfaces a and b in the namespace, both up.
func (ns *NetNS) Veth(t testing.TB, a, b string) {
	t.Helper()
	if err := ns.Do(func() error { return veth(a, b) }); err != nil {
		t.Fatalf("veth %s, %s: %v", a, b, err)
	}
}

// Index returns the index of an interface of the namespace.
func (ns *NetNS) Index(t testing.TB, name string) int {
	t.Helper()
	var index int
	err := ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		index = l.Attrs().Index
		return nil
	})
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	return index
}

// Pair makes two namespaces with an interface veth0 each, joined, with the addresses 10.0.0.1 and 10.0.0.2 in their
// field Addr. They know each other's hardware address, so that no ARP disturbs what a test counts.
func Pair(t testing.TB) (a, b *NetNS) {
	t.Helper()
	a, b = NewNetNS(t), NewNetNS(t)
	a.Addr, b.Addr = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	err := a.Do(func() error {
		if err := veth("veth0", "peer"); err != nil {
			return err
		}
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(peer, int(b.file.Fd()))
	})
	if err == nil {
		err = b.Do(func() error {
			peer, err := netlink.LinkByName("peer")
			if err != nil {
				return err
			}
			return netlink.LinkSetName(peer, "veth0")
		})
	}
	if err == nil {
		err = errors.Join(a.address(b), b.address(a))
	}
	if err == nil {
		err = errors.Join(a.Do(carrier), b.Do(carrier))
	}
	if err != nil {
		t.Fatalf("pair of network namespaces: %v", err)
	}
	return a, b
}

// Netkit makes two namespaces joined by a netkit device, with the addresses 10.0.0.1 and 10.0.0.2 in their field Addr: nk0
// in a, and its peer nk1 in b. It skips the test on kernels without such devices.
func Netkit(t testing.TB) (a, b *NetNS) {
	t.Helper()
	a, b = NewNetNS(t), NewNetNS(t)
	a.Addr, b.Addr = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	err := a.Do(func() error {
		device := &netlink.Netkit{LinkAttrs: netlink.LinkAttrs{Name: "nk0"}, Mode: netlink.NETKIT_MODE_L3}
		device.SetPeerAttrs(&netlink.LinkAttrs{Name: "nk1"})
		if err := netlink.LinkAdd(device); err != nil {
			return err
		}
		peer, err := netlink.LinkByName("nk1")
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(peer, int(b.file.Fd()))
	})
	SkipIfNotSupported(t, err)
	if err == nil {
		err = errors.Join(a.setUp("nk0"), b.setUp("nk1"))
	}
	if err != nil {
		t.Fatalf("netkit: %v", err)
	}
	return a, b
}

// setUp gives an interface the address of the namespace.
func (ns *NetNS) setUp(name string) error {
	return ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(ns.Addr.String() + "/24")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
	})
}

func veth(a, b string) error {
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a}, PeerName: b})
	if err != nil {
		return err
	}
	return errors.Join(up(a), up(b))
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// carrier waits until veth0 can send: the side that came up first learns from a work queue that the other is up.
func carrier() error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := netlink.LinkByName("veth0")
		if err != nil {
			return err
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("veth0: state is %v, want up", l.Attrs().OperState)
		}
	}
}

// address gives veth0 its address and makes the other side's known.
func (ns *NetNS) address(other *NetNS) error {
	var hardware netlink.Neigh
	err := other.Do(func() error {
		l, err := netlink.LinkByName("veth0")
		if err == nil {
			hardware.HardwareAddr = l.Attrs().HardwareAddr
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := ns.setUp("veth0"); err != nil {
		return err
	}
	return ns.Do(func() error {
		l, err := netlink.LinkByName("veth0")
		if err != nil {
			return err
		}
		hardware.LinkIndex = l.Attrs().Index
		hardware.State = netlink.NUD_PERMANENT
		hardware.IP = other.Addr.AsSlice()
		return netlink.NeighSet(&hardware)
	})
}
