// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/netns"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestLocateFindsTheNameOfNow(t *testing.T) {
	bpftest.Root(t)
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "veth0", "peer")
	points, err := resolveIn(ns, &volume.XDP{Interfaces: []string{"veth0"}})
	if err != nil {
		t.Fatal(err)
	}
	holder := ns.Process(t)
	d := New(t.TempDir(), Options{})
	locate := func() Place {
		t.Helper()
		place, found, err := d.Locate(points[0])
		if err != nil || !found {
			t.Fatalf("found is %v, error %v", found, err)
		}
		return place
	}
	if got := locate(); got.Interface != "veth0" || !sameFile(got.NetNS, fmt.Sprintf("/proc/%d/ns/net", holder)) {
		t.Errorf("got %+v, want veth0 in the namespace of process %d", got, holder)
	}
	change := func(f func(netlink.Link) error) {
		t.Helper()
		err := ns.Do(func() error {
			l, err := netlink.LinkByIndex(points[0].IfIndex)
			if err != nil {
				return err
			}
			return f(l)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	change(netlink.LinkSetDown)
	change(func(l netlink.Link) error { return netlink.LinkSetName(l, "lan0") })
	if got := locate(); got.Interface != "lan0" {
		t.Errorf("after it was renamed: got %+v, want lan0", got)
	}
	err = ns.Do(func() error {
		if got, found, err := d.Locate(points[0]); got != (Place{Interface: "lan0"}) || !found || err != nil {
			t.Errorf("inside its namespace: got %+v, %v, %v, want lan0 in no other namespace", got, found, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	change(netlink.LinkDel)
	if got := locate(); got.Interface != "" {
		t.Errorf("after it was deleted: got %+v", got)
	}
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// The first thread of a process cannot end. In another network namespace it would keep that alive.
func TestNoThreadStaysInANetNSThatItLookedInto(t *testing.T) {
	bpftest.Root(t)
	ns := bpftest.NewNetNS(t)
	holder := ns.Process(t)
	var cookie uint64
	err := ns.Do(func() (err error) {
		cookie, err = netns.Cookie()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var thread int
	found, err := new(namespaces).do(cookie, func() error {
		thread = unix.Gettid()
		return nil
	})
	if err != nil || !found {
		t.Fatalf("found is %v, error %v", found, err)
	}
	there := func() bool {
		return sameFile(fmt.Sprintf("/proc/self/task/%d/ns/net", thread), fmt.Sprintf("/proc/%d/ns/net", holder))
	}
	for deadline := time.Now().Add(10 * time.Second); there(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the thread is still in the namespace")
		}
	}
}
