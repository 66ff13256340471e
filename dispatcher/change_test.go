// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
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

var _ = bpftest.Root
