// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestDetachAfterInterfaceIsGone(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, _ := w.program(t, "count", carriers[w.carrier].pass)
		w.mustAttach(t, first, prog)
		w.deleteInterface(t)
		st, err := w.Status()
		if err != nil {
			t.Fatal(err)
		}
		if len(st) != 1 || !st[0].Severed || len(st[0].Members) != 1 {
			t.Errorf("status is %+v, want one severed point with its member", st)
		}
		w.mustDetach(t, first.Volume)
		w.nothingLeft(t)
	})
}

func (w *world) deleteInterface(t testing.TB) {
	t.Helper()
	err := w.here.Do(func() error {
		l, err := netlink.LinkByIndex(w.point.IfIndex)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDetachAfterNetNSIsGone(t *testing.T) {
	for name, c := range carriers {
		t.Run(name, func(t *testing.T) {
			if c.needs != "" {
				bpftest.SkipOnOldKernel(t, c.needs, name)
			}
			w := newWorld(t, name)
			prog, _ := w.program(t, "count", c.pass)
			// A namespace that only its process holds.
			pod := exec.Command("sleep", "1000")
			pod.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
			if err := pod.Start(); err != nil {
				t.Fatal(err)
			}
			err := inProcess(pod.Process.Pid, func() error {
				err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "other"})
				if err != nil {
					return err
				}
				points, err := Resolve(c.hook)
				if err != nil {
					return err
				}
				_, err = w.Attach(context.Background(), points[0], volume.XDPAuto, first, prog)
				return err
			})
			st, statusErr := w.Status()
			pod.Process.Kill()
			pod.Wait()
			if err != nil || statusErr != nil {
				t.Fatal(err, statusErr)
			}
			if len(st) != 1 || st[0].Severed {
				t.Errorf("status is %+v, want the point running", st)
			}
			// The kernel dismantles the namespace some time later.
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				st, err := w.Status()
				if err != nil {
					t.Fatal(err)
				}
				if len(st) == 1 && st[0].Severed {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("status is %+v, want severed", st)
				}
			}
			w.mustDetach(t, first.Volume)
			w.nothingLeft(t)
		})
	}
}

// inProcess runs f in the network namespace of a process.
func inProcess(pid int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := enter(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// A new interface may get the index of a dead one. What ran on the dead one does not count.
func TestPointOfDeadInterfaceIsTakenOver(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		pass := carriers[w.carrier].pass
		prog, _ := w.program(t, "count", pass)
		w.mustAttach(t, first, prog)
		w.deleteInterface(t)
		err := w.here.Do(func() error {
			return netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: "veth0", Index: w.point.IfIndex}, PeerName: "other"})
		})
		if err != nil {
			t.Fatal(err)
		}
		w.mustAttach(t, second, prog)
		w.mustDetach(t, first.Volume)
		st, err := w.Status()
		if err != nil {
			t.Fatal(err)
		}
		if len(st) != 1 || st[0].Severed || len(st[0].Members) != 1 || st[0].Members[0].Volume != second.Volume {
			t.Errorf("status is %+v, want the second volume running", st)
		}
		w.mustDetach(t, second.Volume)
	})
}

// A link stays with an interface that moves to another namespace, and Detach finds it there.
func TestDetachAfterInterfaceMoved(t *testing.T) {
	for _, carrier := range []string{"xdp", "tcx"} {
		t.Run(carrier, func(t *testing.T) {
			w := newWorld(t, carrier)
			other := bpftest.NewNetNS(t)
			prog, packets := w.program(t, "count", carriers[carrier].pass)
			w.mustAttach(t, first, prog)
			holder := holdNetNS(t, other)
			err := w.here.Do(func() error {
				l, err := netlink.LinkByIndex(w.point.IfIndex)
				if err != nil {
					return err
				}
				return netlink.LinkSetNsPid(l, holder)
			})
			if err != nil {
				t.Fatal(err)
			}
			err = other.Do(func() error {
				l, err := netlink.LinkByName("veth0")
				if err != nil {
					return err
				}
				return netlink.LinkSetUp(l)
			})
			if err != nil {
				t.Fatal(err)
			}
			w.there.SendUDP(t, w.here.Addr, 3)
			if n := counted(t, packets, 1); n == 0 {
				t.Log("the program did not move with the interface")
			}
			w.mustDetach(t, first.Volume)
			n := count(t, packets)
			w.there.SendUDP(t, w.here.Addr, 3)
			if now := count(t, packets); now != n {
				t.Error("the program still runs")
			}
		})
	}
}
