// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
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
				for _, m := range []Member{first, second} {
					if _, err = w.Attach(context.Background(), points[0], volume.XDPAuto, m, prog); err != nil {
						return err
					}
				}
				return nil
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
			w.mustDetach(t, second.Volume)
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
		w.replaceInterface(t)
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

// three attaches several members: a fused one, one with a slot, and the last.
func (w *world) three(t testing.TB) (members []Member, packets []*ebpf.Map) {
	t.Helper()
	for i := range 3 {
		prog, counter := w.program(t, fmt.Sprint("count", i), carriers[w.carrier].pass)
		if i == 1 {
			prog = w.slotted(t, prog)
		}
		m := Member{Volume: fmt.Sprint("v", i), Program: "count", Priority: i, ProceedOn: proceedOnPass(w)}
		w.mustAttach(t, m, prog)
		members, packets = append(members, m), append(packets, counter)
	}
	return members, packets
}

// allLeave detaches the members one after another, in either order, and wants nothing to be left.
func (w *world) allLeave(t testing.TB, members []Member, backward bool) {
	t.Helper()
	if backward {
		slices.Reverse(members)
	}
	for _, m := range members {
		w.mustDetach(t, m.Volume)
	}
	w.nothingLeft(t)
}

var bothWays = map[string]bool{"first first": false, "last first": true}

func TestMembersLeaveAfterTheirInterfaceIsGone(t *testing.T) {
	for name, backward := range bothWays {
		t.Run(name, func(t *testing.T) {
			eachCarrier(t, func(t *testing.T, w *world) {
				members, _ := w.three(t)
				w.deleteInterface(t)
				if err := w.Recover(t.Context()); err != nil {
					t.Error(err)
				}
				if st := w.status(t); !st.Severed || st.Moved || len(st.Members) != 3 || st.Members[0].Way != "" {
					t.Errorf("status is %+v, want three members that do not run", st)
				}
				w.allLeave(t, members, backward)
			})
		})
	}
}

// The interface ends while a member comes or goes.
func TestInterfaceIsDeletedDuringAChange(t *testing.T) {
	for _, carrier := range []string{"xdp", "tcx", "clsact"} {
		for _, when := range []string{"program loaded", "next set pinned"} {
			t.Run(carrier+" "+when, func(t *testing.T) {
				w := newWorld(t, carrier)
				members, _ := w.three(t)
				prog, _ := w.program(t, "late", carriers[carrier].pass)
				w.step = func(name string) {
					if name == when {
						w.step = nil
						w.deleteInterface(t)
					}
				}
				late := Member{Volume: "late", Program: "count", Priority: 9}
				if _, err := w.attach(late, prog); !errors.Is(err, ErrMissing) {
					t.Errorf("attach: error is %v, want a missing interface", err)
				}
				if st := w.status(t); !st.Severed || len(st.Members) != 3 {
					t.Errorf("status is %+v, want three members that do not run", st)
				}
				w.allLeave(t, members, false)
			})
			t.Run(carrier+" "+when+", detach", func(t *testing.T) {
				w := newWorld(t, carrier)
				members, _ := w.three(t)
				w.step = func(name string) {
					if name == when {
						w.step = nil
						w.deleteInterface(t)
					}
				}
				w.allLeave(t, members, false)
			})
		}
	}
}

func TestRenamedInterfaceIsTheSame(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		members, packets := w.three(t)
		err := w.here.Do(func() error {
			l, err := netlink.LinkByIndex(w.point.IfIndex)
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "lan0"), netlink.LinkSetUp(l))
		})
		if err != nil {
			t.Fatal(err)
		}
		again := w.resolve(t, renamed(carriers[w.carrier].hook))
		if again.dirName() != w.point.dirName() {
			t.Errorf("the point is %s, was %s", again.dirName(), w.point.dirName())
		}
		w.mustDetach(t, members[0].Volume)
		point := w.point
		w.point = again
		prog, counter := w.program(t, "late", carriers[w.carrier].pass)
		w.mustAttach(t, Member{Volume: "late", Program: "count", Priority: 9}, prog)
		w.point = point
		w.neighbours(t)
		w.wantRun(t, packets[1], packets[2], counter)
		if st := w.status(t); st.Severed || st.Moved || len(st.Members) != 3 {
			t.Errorf("status is %+v, want three members that run", st)
		}
		w.mustDetach(t, "late")
		w.allLeave(t, members, false)
	})
}

func renamed(h volume.Hook) volume.Hook {
	if tc, ok := h.(*volume.TC); ok {
		return &volume.TC{Interfaces: []string{"lan0"}, Direction: tc.Direction}
	}
	return &volume.XDP{Interfaces: []string{"lan0"}}
}

// neighbours makes both ends known to each other again: what is permanent goes when an interface goes down.
func (w *world) neighbours(t testing.TB) {
	t.Helper()
	know := func(ns, other *bpftest.NetNS, index, otherIndex int) {
		var hardware net.HardwareAddr
		err := other.Do(func() error {
			l, err := netlink.LinkByIndex(otherIndex)
			if err == nil {
				hardware = l.Attrs().HardwareAddr
			}
			return err
		})
		if err == nil {
			err = ns.Do(func() error {
				return netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: other.Addr.AsSlice(), HardwareAddr: hardware})
			})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	index := w.there.Index(t, "veth0")
	know(w.here, w.there, w.point.IfIndex, index)
	know(w.there, w.here, index, w.point.IfIndex)
}

// An interface takes its links along to another namespace, and its number can be given to a new one: that is not the
// point of those who were there before, and they are neither changed nor ended for it. Filters end.
func TestMovedInterfaceTakesItsMembersAlong(t *testing.T) {
	for name, backward := range bothWays {
		t.Run(name, func(t *testing.T) {
			eachCarrier(t, func(t *testing.T, w *world) {
				members, packets := w.three(t)
				other := bpftest.NewNetNS(t)
				w.move(t, other)
				classic := carriers[w.carrier].classic
				err := other.Do(func() error { // as where an interface goes back to the machine's own namespace
					if st := w.status(t); st.Moved == classic {
						t.Errorf("where it is now: status is %+v", st)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				w.here.Process(t)
				if st := w.status(t); st.Severed != classic || st.Moved == classic || len(st.Members) != 3 {
					t.Errorf("status is %+v, want three members that moved, or ended with their qdisc", st)
				}
				if !classic {
					w.replaceInterface(t)
					prog, _ := w.program(t, "late", carriers[w.carrier].pass)
					if _, err := w.attach(first, prog); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "moved to another network namespace") {
						t.Errorf("error is %v, want one about the interface that moved", err)
					}
					was := counts(t, packets)
					w.there.SendUDP(t, w.here.Addr, 5)
					if !carriers[w.carrier].egress {
						for i, m := range packets {
							if counted(t, m, was[i]+5) < was[i]+5 {
								t.Errorf("member %d met %d of 5 packets", i, count(t, m)-was[i])
							}
						}
					}
				}
				w.allLeave(t, members, backward)
				was := counts(t, packets)
				w.there.SendUDP(t, w.here.Addr, 5)
				if diff := cmp.Diff(was, counts(t, packets)); diff != "" {
					t.Errorf("members that are gone met packets (-before +after):\n%s", diff)
				}
			})
		})
	}
}

// move puts the interface of the point into another namespace, up.
func (w *world) move(t testing.TB, other *bpftest.NetNS) {
	t.Helper()
	holder := other.Process(t)
	err := w.here.Do(func() error {
		l, err := netlink.LinkByIndex(w.point.IfIndex)
		if err != nil {
			return err
		}
		return netlink.LinkSetNsPid(l, holder)
	})
	if err == nil {
		err = other.Do(func() error {
			l, err := netlink.LinkByName("veth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// replaceInterface makes a new interface with the number and the name of the point's.
func (w *world) replaceInterface(t testing.TB) {
	t.Helper()
	err := w.here.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0", Index: w.point.IfIndex}, PeerName: "other"})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Detach that cannot see whether a point is a volume's has not ended it there.
func TestDetachFailsWhereAPointCannotBeRead(t *testing.T) {
	w := newWorld(t, "xdp")
	prog, _ := w.program(t, "count", carriers[w.carrier].pass)
	w.mustAttach(t, first, prog)
	members := filepath.Join(w.root, w.point.dirName(), membersDir)
	if err := os.Chmod(members, 0); err != nil {
		t.Fatal(err)
	}
	err := w.here.Do(func() error {
		if err := bpftest.GiveUp(unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH); err != nil {
			return err
		}
		return w.Detach(context.Background(), first.Volume)
	})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("detach: %v, want that it is not permitted", err)
	}
	if err := os.Chmod(members, 0o700); err != nil {
		t.Fatal(err)
	}
	w.mustDetach(t, first.Volume)
	w.nothingLeft(t)
}
