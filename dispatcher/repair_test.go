// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// repair repairs the point from outside its network namespace, as the node plugin does.
func (w *world) repair(t testing.TB) (did string, err error) {
	t.Helper()
	all, err := w.Repair(t.Context(), w.point)
	for i := range all {
		all[i] = strings.TrimPrefix(all[i], carriers[w.carrier].hook.String()+": ")
	}
	return strings.Join(all, "; "), err
}

// wantNoRepair fails unless all is well.
func (w *world) wantNoRepair(t testing.TB) {
	t.Helper()
	if did, err := w.repair(t); did != "" || err != nil {
		t.Errorf("repair did %q, %v, want nothing", did, err)
	}
}

// removePins removes the pins of the point that match a pattern, of which there must be some.
func (w *world) removePins(t testing.TB, pattern string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.root, w.point.dirName(), pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, %v", pattern, paths, err)
	}
	for _, path := range paths {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever others take away of a point with a fused member, one in a slot and a last one, all three run after the repair,
// and leave nothing when they go.
func TestRepairMakesEveryMemberRunAgain(t *testing.T) {
	pins := func(pattern string) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.removePins(t, pattern) }
	}
	for name, c := range map[string]struct {
		spoil func(*testing.T, *world)
		did   string
		link  bool // only of carriers that have one
		later bool // not at once
	}{
		"detached":          {spoil: func(t *testing.T, w *world) { w.end(t) }, did: "what had been detached was attached again"},
		"link unpinned":     {spoil: pins(linkPin), did: "what had been detached was attached again", link: true, later: true},
		"program replaced":  {spoil: replaceProgram, did: "the program of its members replaced another one"},
		"record unpinned":   {spoil: pins(recordPin), link: true}, // whoever opens the point writes it anew
		"set unpinned":      {spoil: pins(setPin), did: "the program of its members replaced another one"},
		"slots unpinned":    {spoil: pins(slotsPin), did: "the program of its members replaced another one"},
		"counters unpinned": {spoil: pins(countersPin), did: "the program of its members replaced another one"},
		"programs unpinned": {spoil: pins("members/*/*/*/prog"), did: `program "count": prog pinned again; program "count": prog pinned again; program "count": prog pinned again`},
		"maps unpinned":     {spoil: pins("members/v0/*/*/map0"), did: `program "count": map0 pinned again`},
		"code unpinned":     {spoil: pins("members/v0/*/*/code"), did: `program "count": its code is gone, so it will have a slot`},
	} {
		t.Run(name, func(t *testing.T) {
			eachCarrier(t, func(t *testing.T, w *world) {
				if c.link && carriers[w.carrier].classic {
					return // a filter has no link
				}
				w.here.Process(t)
				w.options.MemberStats = true
				members, packets := w.three(t)
				w.wantNoRepair(t)
				c.spoil(t, w)
				did, err := w.repair(t)
				// The kernel ends a link on a thread of its own.
				for end := time.Now().Add(2 * time.Second); c.later && did == "" && time.Now().Before(end); time.Sleep(time.Millisecond) {
					did, err = w.repair(t)
				}
				if did != c.did || err != nil {
					t.Errorf("repair did %q, %v, want %q", did, err, c.did)
				}
				w.wantNoRepair(t)
				w.wantRun(t, packets...)
				// The next change works from what is pinned now.
				w.mustDetach(t, members[2].Volume)
				w.wantRun(t, packets[:2]...)
				w.allLeave(t, members[:2], false)
			})
		})
	}
}

func replaceProgram(t *testing.T, w *world) {
	theirs, _ := w.program(t, "theirs", carriers[w.carrier].pass)
	w.interfere(t, theirs.Program)
}

// A lone program is attached as it is, without a program of ours around it.
func TestRepairOfALoneMember(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		w.here.Process(t)
		verdict, proceedOn := w.neutral()
		prog, packets := w.program(t, "count", verdict)
		m := first
		m.ProceedOn = proceedOn
		w.mustAttach(t, m, prog)
		w.end(t)
		if did, err := w.repair(t); did == "" || err != nil {
			t.Errorf("repair did %q, %v", did, err)
		}
		w.wantWays(t, Plain)
		w.wantRun(t, packets)
		w.mustDetach(t, m.Volume)
	})
}

func TestRepairLeavesAForeignProgram(t *testing.T) {
	w := newWorld(t, "xdp")
	w.here.Process(t)
	_, packets := w.three(t)
	w.end(t)
	theirs, seen := w.program(t, "theirs", carriers["xdp"].pass)
	veth := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: w.point.IfIndex}}
	set := func(fd int) {
		if err := w.here.Do(func() error { return netlink.LinkSetXdpFdWithFlags(veth, fd, unix.XDP_FLAGS_DRV_MODE) }); err != nil {
			t.Fatal(err)
		}
	}
	set(theirs.FD())
	for range 2 {
		_, err := w.repair(t)
		if fe, ok := errors.AsType[*ForeignError](err); !ok || fe.Name != "theirs" {
			t.Errorf("error is %v, want a foreign program", err)
		}
	}
	if st := w.status(t); !st.Severed || st.Foreign.Name != "theirs" {
		t.Errorf("status is %+v, want one severed by theirs", st)
	}
	w.wantRun(t, seen)
	set(-1)
	if did, err := w.repair(t); did == "" || err != nil {
		t.Errorf("repair without them did %q, %v", did, err)
	}
	w.wantRun(t, packets...)
	for _, v := range []string{"v0", "v1", "v2"} {
		w.mustDetach(t, v)
	}
}

// An interface with the number of the one that is gone is another one, if it is called otherwise, and so is one with its
// name and another number.
func TestRepairTouchesNoOtherInterface(t *testing.T) {
	for name, other := range map[string]netlink.LinkAttrs{"same number": {Name: "other0"}, "same name": {Name: "veth0", Index: 4711}, "none": {}} {
		t.Run(name, func(t *testing.T) {
			eachCarrier(t, func(t *testing.T, w *world) {
				w.here.Process(t)
				members, _ := w.three(t)
				w.deleteInterface(t)
				if other.Name != "" {
					if other.Index == 0 {
						other.Index = w.point.IfIndex
					}
					if err := w.here.Do(func() error { return netlink.LinkAdd(&netlink.Veth{LinkAttrs: other, PeerName: "peer0"}) }); err != nil {
						t.Fatal(err)
					}
				}
				w.wantNoRepair(t)
				if st := w.status(t); !st.Severed || st.Foreign != (Loaded{}) {
					t.Errorf("status is %+v, want severed", st)
				}
				w.allLeave(t, members, false)
			})
		})
	}
}

// An interface that moved to another network namespace, as into a pod, is left there with what runs.
func TestRepairLeavesAnInterfaceThatMoved(t *testing.T) {
	w := newWorld(t, "xdp")
	w.here.Process(t)
	members, _ := w.three(t)
	w.move(t, bpftest.NewNetNS(t))
	w.wantNoRepair(t)
	w.allLeave(t, members, false)
}

// The record of a member is gone, and with it what it was made of. Its program, which its volume has pinned, comes back as
// it was loaded.
func TestRejoinBringsBackAMemberFromItsProgram(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		w.here.Process(t)
		members, packets := w.three(t)
		prog, err := ebpf.LoadPinnedProgram(glob(t, w, "members/v0/*/*/prog"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer prog.Close()
		w.removePins(t, "members/v0/*/record")
		if done, err := w.Rejoin(t.Context(), w.point, volume.XDPAuto, members[0], prog); !done || err != nil {
			t.Fatal(done, err)
		}
		w.wantRun(t, packets...)
		w.mustDetach(t, members[2].Volume)
		w.wantRun(t, packets[:2]...)
		if got := w.status(t).Members[0]; got.Way != Slot || got.Why != noCode {
			t.Errorf("member is %+v, want one with a slot", got)
		}
		w.allLeave(t, members[:2], true)
	})
}

func glob(t testing.TB, w *world, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.root, w.point.dirName(), pattern))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%s: %v, %v", pattern, paths, err)
	}
	return paths[0]
}

// Without its record a point would keep its program for ever.
func TestDetachFindsALinkWithoutRecord(t *testing.T) {
	w := newWorld(t, "xdp")
	prog, _ := w.program(t, "count", carriers["xdp"].pass)
	w.mustAttach(t, first, prog)
	w.removePins(t, recordPin)
	w.mustDetach(t, first.Volume)
	w.withoutLink(t)
}

// withoutLink fails if the interface has a program.
func (w *world) withoutLink(t testing.TB) {
	t.Helper()
	if _, err := link.LoadPinnedLink(filepath.Join(w.root, w.point.dirName(), linkPin), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("link: error is %v, want none there", err)
	}
}
