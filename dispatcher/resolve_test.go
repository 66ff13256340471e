// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/netns"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func resolveIn(ns *bpftest.NetNS, h volume.Hook) (points []Point, err error) {
	err = ns.Do(func() (err error) {
		points, err = Resolve(h)
		return err
	})
	return points, err
}

func TestResolveGivesAPointPerInterface(t *testing.T) {
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "a0", "b0")
	var cookie uint64
	if err := ns.Do(func() (err error) { cookie, err = netns.Cookie(); return err }); err != nil {
		t.Fatal(err)
	}
	got, err := resolveIn(ns, &volume.TC{Interfaces: []string{"b0", "a0", "b0"}, Direction: volume.Egress})
	if err != nil {
		t.Fatal(err)
	}
	want := []Point{
		{Kind: volume.KindTC, Direction: volume.Egress, NetNS: cookie, IfIndex: ns.Index(t, "b0"), Interface: "b0"},
		{Kind: volume.KindTC, Direction: volume.Egress, NetNS: cookie, IfIndex: ns.Index(t, "a0"), Interface: "a0"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("points (-want +got):\n%s", diff)
	}
	if s := got[0].String(); s != "tc b0 egress" {
		t.Errorf("String is %q", s)
	}
	for _, p := range got {
		back, ok := parsePoint(p.dirName())
		back.Interface = p.Interface
		if !ok || back != p {
			t.Errorf("directory name %q is read as %+v, %v", p.dirName(), back, ok)
		}
	}
}

func TestUnknownInterfaceNamesTheExisting(t *testing.T) {
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "eth0", "peer")
	for name, want := range map[string]string{
		"eth9":              `interface "eth9" does not exist; did you mean "eth0"?; there are: eth0, lo, peer`,
		"nothing-like-this": `interface "nothing-like-this" does not exist; there are: eth0, lo, peer`,
		DefaultRoute:        `interface @default-route: there is no default route, neither IPv4 nor IPv6; name the interface; there are: eth0, lo, peer`,
	} {
		_, err := resolveIn(ns, &volume.XDP{Interfaces: []string{name}})
		if !errors.Is(err, ErrMissing) || err.Error() != want {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}

func TestDefaultRoutePrefersIPv4AndLowestMetric(t *testing.T) {
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "a0", "b0")
	ns.Veth(t, "c0", "d0")
	route := func(name, to, via string, metric int) {
		t.Helper()
		err := ns.Do(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(to)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, addr); err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("address: %w", err)
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(via), Priority: metric})
		})
		if err != nil {
			t.Fatalf("route by %s: %v", name, err)
		}
	}
	want := func(name string) {
		t.Helper()
		points, err := resolveIn(ns, &volume.XDP{Interfaces: []string{DefaultRoute}})
		if err != nil {
			t.Fatal(err)
		}
		if len(points) != 1 || points[0].Interface != name {
			t.Errorf("@default-route is %v, want %s", points, name)
		}
	}
	route("a0", "10.1.0.1/24", "10.1.0.2", 200)
	want("a0")
	route("c0", "10.2.0.1/24", "10.2.0.2", 100)
	want("c0")
}

func TestDefaultRouteByIPv6(t *testing.T) {
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "a0", "b0")
	err := ns.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/a0/disable_ipv6", []byte("0"), 0); err != nil {
			return err
		}
		l, err := netlink.LinkByName("a0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("fd00::1/64")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("fd00::2")})
	})
	if err != nil {
		bpftest.SkipIfNotSupported(t, err)
		t.Fatal(err)
	}
	points, err := resolveIn(ns, &volume.XDP{Interfaces: []string{DefaultRoute}})
	if err != nil {
		t.Fatal(err)
	}
	if len(points) != 1 || points[0].Interface != "a0" {
		t.Errorf("@default-route is %v, want a0", points)
	}
}
