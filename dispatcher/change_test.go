// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// steady is a member that is always there.
var steady = Member{Volume: "steady", Program: "count", Priority: 500}

// changePackets is how many packets flow while members come and go.
var changePackets = map[string]uint64{"xdp": 1_000_000, "tcx": 1_000_000, "clsact": 1_000_000, "tcx egress": 100_000, "clsact egress": 100_000}

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
		p.leave(t, w)
	case p.attached == 1:
		w.mustAttach(t, p.check, p.checking())
		p.attached = 2
	case r.IntN(2) == 0: // as after a restart: the program is loaded anew
		w.mustAttach(t, p.stamp, p.stamping())
	default:
		w.mustAttach(t, p.check, p.checking())
	}
}

func (p *pair) leave(t testing.TB, w *world) {
	t.Helper()
	w.mustDetach(t, p.stamp.Volume)
	p.attached = 0
}

// Members of every kind come and go while packets flow: fused ones, ones that are tail-called, and the last one alone.
func TestChangeLosesNoPacketAndNoneMeetsAWrongSet(t *testing.T) {
	for carrier, packetsToSend := range changePackets {
		if testing.Short() { // an emulated machine
			packetsToSend /= 50
		}
		t.Run(carrier, func(t *testing.T) {
			w := newWorld(t, carrier)
			steady := steady
			var verdict int32
			verdict, steady.ProceedOn = w.neutral()
			stays, packets := w.program(t, "stays", verdict)
			w.mustAttach(t, steady, stays)
			pairs := []*pair{w.pair(t, 0, false, false), w.pair(t, 1, true, false), w.pair(t, 2, false, true), w.pair(t, 3, true, true)}
			swaps, ways := 0, map[Way]int{}
			w.step = func(name string) {
				if name == "link updated" || name == "filter replaced" {
					swaps++
				}
			}
			seed := rand.Uint64()
			r := rand.New(rand.NewPCG(seed, 0))
			f := w.flow(t, 0)
			enough := func() bool {
				return f.sent.Load() >= packetsToSend && swaps >= 50 && ways[Plain] > 0 && ways[Fused] > 0 && ways[Slot] > 0
			}
			for start := time.Now(); !enough() && !f.stuck.Load(); {
				if time.Since(start) > 5*time.Minute {
					t.Fatalf("only %d packets in %v", f.sent.Load(), time.Since(start))
				}
				if r.IntN(10) == 0 { // everybody leaves
					for _, p := range pairs {
						p.leave(t, w)
					}
				} else {
					pairs[r.IntN(len(pairs))].change(t, w, r)
				}
				for _, way := range w.ways(t) {
					ways[way]++
				}
			}
			for _, p := range pairs {
				p.leave(t, w)
			}
			sent, lost := f.stop(t)
			met := counted(t, packets, sent)
			t.Logf("%d packets, %d swaps, %v (seed %d)", sent, swaps, ways, seed)
			if lost > 0 || met != sent {
				t.Errorf("of %d packets, %d met the member that was always there and %d did not arrive", sent, met, lost)
			}
			both := uint64(0)
			for n, p := range pairs {
				both += number(t, p.seen, 0)
				if without := number(t, p.seen, 1); without > 0 {
					t.Errorf("pair %d: the second member met %d packets that had not met the first", n, without)
				}
			}
			if both == 0 {
				t.Error("no pair was there when packets came")
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

// Processes that know nothing but the directory change the set: what loaded the members has ended, and nobody holds them.
func TestPointIsRebuiltFromItsPins(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		var members []Member
		for i := range 4 {
			m := Member{Volume: fmt.Sprint("v", i), Program: "count", Priority: i, ProceedOn: proceedOnPass(w)}
			if i == 3 {
				_, m.ProceedOn = w.neutral()
			}
			w.run(t, errand{Does: "attach", Member: m, Slot: i == 2})
			members = append(members, m)
		}
		if got, want := w.ways(t), []Way{Fused, Fused, Slot, Fused}; !slices.Equal(got, want) {
			t.Errorf("members run %v, want %v", got, want)
		}
		var packets []*ebpf.Map
		for _, m := range members {
			packets = append(packets, w.pinnedCounter(t, m))
		}
		w.wantRun(t, packets...)
		w.run(t, errand{Does: "detach", Member: members[1]})
		w.wantRun(t, packets[0], packets[2], packets[3])
		w.run(t, errand{Does: "recover", Stats: true})
		w.wantRun(t, packets[0], packets[2], packets[3])
		for i, m := range w.status(t).Members {
			if m.Counts == nil || m.Counts.Packets < 5 {
				t.Errorf("member %d: counts are %+v, want 5 packets", i, m.Counts)
			}
		}
		w.run(t, errand{Does: "recover"}) // by one who does not want them counted
		w.run(t, errand{Does: "detach", Member: members[2]})
		w.run(t, errand{Does: "detach", Member: members[0]})
		w.wantRun(t, packets[3])
		if got := w.ways(t); !slices.Equal(got, []Way{Plain}) {
			t.Errorf("the last member runs %v", got)
		}
		w.run(t, errand{Does: "detach", Member: members[3]})
	})
}

// pinnedCounter opens the counter of a member by its pin.
func (w *world) pinnedCounter(t testing.TB, m Member) *ebpf.Map {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(w.root, w.point.dirName(), membersDir, m.Volume, m.Program, "*", mapPin+"0"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("maps of %s: %v, %v", m.Volume, pins, err)
	}
	counter, err := ebpf.LoadPinnedMap(pins[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { counter.Close() })
	return counter
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
		verdict, proceedOn := w.neutral()
		stays, packets := w.program(t, "stays", verdict)
		steady := steady
		steady.ProceedOn = proceedOn
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
