// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// steady is a member that is always there.
var steady = Member{Volume: "steady", Program: "count", Priority: 500}

// changePackets is how many packets flow while members come and go.
const changePackets = 1_000_000

// pair is two members of one volume: the first puts a stamp on a packet, the second counts packets without. The second
// comes after the first and they go together, so that there never is a set in which it may meet one.
type pair struct {
	stamp, check       Member
	stamping, checking func() Program
	seen               *ebpf.Map
	attached           int // how many of the two
}

func (w *world) pair(t testing.TB, n int, stampSlot, checkSlot bool) *pair {
	p := &pair{
		stamp: Member{Volume: fmt.Sprintf("pair%d", n), Program: "stamp", Priority: 10 + n, ProceedOn: proceedOnPass(w)},
		check: Member{Volume: fmt.Sprintf("pair%d", n), Program: "check", Priority: 900 + n, ProceedOn: proceedOnPass(w)},
		seen:  w.counter(t, "seen"),
	}
	load := func(slot bool, load func() Program) func() Program {
		if !slot {
			return load
		}
		return func() Program { return w.slotted(t, load()) }
	}
	p.stamping = load(stampSlot, func() Program { return w.stamping(t, n) })
	p.checking = load(checkSlot, func() Program { return w.checking(t, n, p.seen) })
	return p
}

// change makes one of the changes that the pair can make.
func (p *pair) change(t testing.TB, w *world, r *rand.Rand) {
	t.Helper()
	switch {
	case p.attached == 0:
		w.mustAttach(t, p.stamp, p.stamping())
		p.attached = 1
	case r.IntN(3) == 0:
		w.mustDetach(t, p.stamp.Volume)
		p.attached = 0
	case p.attached == 1:
		w.mustAttach(t, p.check, p.checking())
		p.attached = 2
	case r.IntN(2) == 0: // as after a restart: the program is loaded anew
		w.mustAttach(t, p.stamp, p.stamping())
	default:
		w.mustAttach(t, p.check, p.checking())
	}
}

// Members of every kind come and go while packets flow: fused ones, ones that are tail-called, and the last one alone.
func TestChangeLosesNoPacketAndNoneMeetsAWrongSet(t *testing.T) {
	for _, carrier := range []string{"xdp", "tcx", "clsact", "tcx egress", "clsact egress"} {
		t.Run(carrier, func(t *testing.T) {
			w := newWorld(t, carrier)
			stays, packets := w.program(t, "stays", carriers[carrier].pass)
			steady := steady
			steady.ProceedOn = proceedOnPass(w)
			w.mustAttach(t, steady, stays)
			pairs := []*pair{w.pair(t, 0, false, false), w.pair(t, 1, true, false), w.pair(t, 2, false, true), w.pair(t, 3, true, true)}
			swaps := 0
			w.step = func(name string) {
				if name == "link updated" || name == "filter replaced" {
					swaps++
				}
			}
			seed := rand.Uint64()
			r := rand.New(rand.NewPCG(seed, 0))
			f := w.flow(t, 0)
			for start := time.Now(); f.sent.Load() < changePackets; {
				if time.Since(start) > 5*time.Minute {
					t.Fatalf("only %d packets in %v", f.sent.Load(), time.Since(start))
				}
				pairs[r.IntN(len(pairs))].change(t, w, r)
			}
			for _, p := range pairs {
				w.mustDetach(t, p.stamp.Volume)
			}
			sent, lost := f.stop(t)
			met := counted(t, packets, sent)
			t.Logf("%d packets, %d swaps (seed %d)", sent, swaps, seed)
			if lost > 0 || met != sent {
				t.Errorf("of %d packets, %d met the member that was always there and %d did not arrive", sent, met, lost)
			}
			for n, p := range pairs {
				if seen, without := number(t, p.seen, 0), number(t, p.seen, 1); seen == 0 || without > 0 {
					t.Errorf("pair %d: the second member met %d packets, %d of them had not met the first", n, seen, without)
				}
			}
			w.mustDetach(t, steady.Volume)
		})
	}
}

// The kernel empties a program array when the last who knows its name lets go of it, even if a program still runs that
// calls by it.
func TestPacketOnItsWayFindsItsSlots(t *testing.T) {
	test := func(t *testing.T, w *world, mode volume.XDPMode) {
		if carriers[w.carrier].classic {
			w.holdQdisc(t)
		}
		stays, packets := w.program(t, "stays", carriers[w.carrier].pass)
		slot := steady
		slot.ProceedOn = proceedOnPass(w)
		slow := Member{Volume: slot.Volume, Program: "linger", Priority: 1, ProceedOn: proceedOnPass(w)}
		if err := w.attachMode(slot, w.slotted(t, stays), mode); err != nil {
			t.Fatal(err)
		}
		w.mustAttach(t, slow, w.lingering(t, 2*time.Millisecond, nil))
		other := Member{Volume: "other", Program: "count", Priority: 2, ProceedOn: proceedOnPass(w)}
		passing, _ := w.program(t, "passing", carriers[w.carrier].pass)

		f := w.flow(t, 0)
		for range 5 {
			w.mustAttach(t, other, passing)
			w.mustDetach(t, other.Volume)
		}
		w.mustDetach(t, slot.Volume)
		sent, lost := f.stop(t)
		if met := count(t, packets); lost > 0 || met == 0 {
			t.Errorf("%d of %d packets were lost, %d met the slot", lost, sent, met)
		}
	}
	eachCarrier(t, func(t *testing.T, w *world) { test(t, w, volume.XDPAuto) })
	t.Run("xdp generic", func(t *testing.T) { test(t, newWorld(t, "xdp"), volume.XDPGeneric) })
}

// The same for the program arrays of a member, and of its program that another replaces: who loaded it lets go of it then.
func TestPacketOnItsWayFindsWhatItsMemberCalls(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		if carriers[w.carrier].classic {
			w.holdQdisc(t)
		}
		stays, packets := w.program(t, "stays", carriers[w.carrier].pass)
		old := w.lingering(t, 2*time.Millisecond, &stays)
		w.mustAttach(t, first, old)
		f := w.flow(t, 0)
		for range 8 {
			anew := w.lingering(t, 2*time.Millisecond, &stays)
			w.mustAttach(t, first, anew)
			if err := errors.Join(old.Close(), old.Maps["next"].Close()); err != nil {
				t.Error(err)
			}
			old = anew
			time.Sleep(5 * time.Millisecond)
		}
		if err := errors.Join(old.Close(), old.Maps["next"].Close()); err != nil {
			t.Error(err)
		}
		w.mustDetach(t, first.Volume)
		sent, lost := f.stop(t)
		if met := count(t, packets); lost > 0 || met == 0 {
			t.Errorf("%d of %d packets were lost, %d met what the member calls", lost, sent, met)
		}
	})
}

// holdQdisc adds the qdisc for the time of the test. While it comes or goes, the kernel drops what the interface sends
// (qdisc_graft of net/sched/sch_api.c deactivates the device).
func (w *world) holdQdisc(t testing.TB) {
	t.Helper()
	qdisc := (&site{Dispatcher: w.Dispatcher, Point: w.point}).qdisc()
	if err := w.here.Do(func() error { return netlink.QdiscAdd(qdisc) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.here.Do(func() error { return netlink.QdiscDel(qdisc) }); err != nil {
			t.Error(err)
		}
	})
}

// What remains of a change is the plain program of the last member, on the link that was there all the time.
func TestLastMemberRunsAsItWasLoaded(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		stays, packets := w.program(t, "stays", carriers[w.carrier].pass)
		goes, _ := w.program(t, "goes", carriers[w.carrier].pass)
		own, err := programID(stays.Program)
		if err != nil {
			t.Fatal(err)
		}
		w.mustAttach(t, steady, stays)
		link := w.status(t).Link
		f := w.flow(t, 0)
		before, after := first, Member{Volume: "after", Program: "count", Priority: 900}
		before.ProceedOn = proceedOnPass(w)
		for range 3 {
			for _, m := range []Member{before, after} {
				w.mustAttach(t, m, goes)
				if st := w.status(t); st.Program.ID == own || st.Link != link {
					t.Errorf("with another member: program %d on link %d, want not %d, and link %d", st.Program.ID, st.Link, own, link)
				}
			}
			w.mustDetach(t, after.Volume)
			w.mustDetach(t, before.Volume)
			if st := w.status(t); st.Program.ID != own || st.Link != link || st.Members[0].Way != Plain {
				t.Errorf("alone again: program %d on link %d, %s, want its own, %d, on link %d", st.Program.ID, st.Link, st.Members[0].Way, own, link)
			}
		}
		sent, lost := f.stop(t)
		if met := counted(t, packets, sent); lost > 0 || met != sent {
			t.Errorf("of %d packets, %d met the member that stayed and %d were lost", sent, met, lost)
		}
		w.mustDetach(t, steady.Volume)
	})
}
