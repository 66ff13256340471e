// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

// maxSteps is more than the effects of any call.
const maxSteps = 40

// stride is how far apart the effects are at which a test kills: an emulated machine visits a third, and each time another one.
func stride() int {
	if testing.Short() {
		return 3
	}
	return 1
}

func firstStep() int { return 1 + rand.IntN(stride()) }

// alone is an errand about the only member. Egress has to show besides what a slot and counters add.
func (w *world) alone(does string, dies int) errand {
	return errand{Does: does, Member: first, Slot: carriers[w.carrier].egress, Stats: carriers[w.carrier].egress, Dies: dies}
}

func (w *world) aloneProgram(t testing.TB) (Program, *ebpf.Map) {
	t.Helper()
	prog, packets := w.program(t, "count", carriers[w.carrier].pass)
	if carriers[w.carrier].egress {
		prog, w.options.MemberStats = w.slotted(t, prog), true
	}
	return prog, packets
}

func TestKilledAttachLeavesNothingForGood(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, packets := w.aloneProgram(t)
		step := firstStep()
		for ; w.run(t, w.alone("attach", step)); step += stride() {
			if step > maxSteps {
				t.Fatal("too many steps")
			}
			// Recovery by tearing down.
			w.mustDetach(t, first.Volume)
			w.nothingLeft(t)

			// Recovery, itself killed, and then tearing down.
			w.run(t, w.alone("attach", step))
			w.run(t, w.alone("recover", 1+rand.IntN(4)))
			if err := w.Recover(t.Context()); err != nil {
				t.Errorf("step %d: recover: %v", step, err)
			}
			w.mustDetach(t, first.Volume)
			w.nothingLeft(t)

			// Recovery by trying again.
			if !w.run(t, w.alone("attach", step)) {
				t.Fatalf("step %d was not reached again", step)
			}
			w.mustAttach(t, first, prog)
			n := count(t, packets)
			w.send(t, 3)
			if now := counted(t, packets, n+3); now < n+3 {
				t.Errorf("step %d: %d of 3 packets counted", step, now-n)
			}
			w.mustDetach(t, first.Volume)
			w.nothingLeft(t)

			// Another volume, while the killed one is not yet torn down. The last step leaves it attached.
			if !w.run(t, w.alone("attach", step)) {
				t.Fatalf("step %d was not reached again", step)
			}
			if _, err := w.attach(second, prog); err == nil {
				w.mustDetach(t, first.Volume)
				if err := w.ping(); err != nil {
					t.Error(err)
				}
				w.mustDetach(t, second.Volume)
			} else {
				w.mustDetach(t, first.Volume)
			}
			w.nothingLeft(t)
		}
		if step < 6 {
			t.Errorf("only %d steps", step)
		}
		w.mustDetach(t, first.Volume) // of the one that was not killed
	})
}

func TestKilledReplacementIsFinishedByTheNext(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, packets := w.aloneProgram(t)
		for step := firstStep(); ; step += stride() {
			w.mustAttach(t, first, prog)
			if !w.run(t, w.alone("attach", step)) { // with another program: this is a replacement
				break
			}
			if err := w.ping(); err != nil {
				t.Errorf("step %d: %v", step, err)
			}
			w.mustAttach(t, first, prog)
			n := count(t, packets)
			w.send(t, 3)
			if now := counted(t, packets, n+3); now < n+3 {
				t.Errorf("step %d: %d of 3 packets counted", step, now-n)
			}
			w.run(t, w.alone("attach", step))
			w.mustDetach(t, first.Volume)
			w.nothingLeft(t)
		}
		w.mustDetach(t, first.Volume)
	})
}

func TestKilledDetachIsFinishedByTheNext(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, _ := w.aloneProgram(t)
		step := firstStep()
		for ; ; step += stride() {
			w.mustAttach(t, first, prog)
			if !w.run(t, w.alone("detach", step)) {
				break
			}
			w.mustDetach(t, first.Volume)
			w.nothingLeft(t)

			w.mustAttach(t, first, prog)
			w.run(t, w.alone("detach", step))
			w.mustAttach(t, second, prog) // the first is on its way out and holds nothing
			w.mustDetach(t, first.Volume)
			if err := w.ping(); err != nil {
				t.Error(err)
			}
			w.mustDetach(t, second.Volume)
			w.nothingLeft(t)
		}
		if step < 6 {
			t.Errorf("only %d steps", step)
		}
	})
}

// scenario is a change of a set that has members already.
type scenario struct {
	name  string
	base  []string // what is there before and after: steady, first, slot
	there bool     // the member that the errand is about is there before, too
	slot  bool     // it needs a slot
	does  string
	at    int // its priority
}

var scenarios = []scenario{
	{name: "second member", base: []string{"steady"}, does: "attach", at: 100},
	{name: "second member with a slot", base: []string{"steady"}, does: "attach", slot: true, at: 100},
	{name: "third member with a slot", base: []string{"first", "steady"}, does: "attach", slot: true, at: 1},
	{name: "fourth member", base: []string{"first", "slot", "steady"}, does: "attach", at: 900},
	{name: "replacement", base: []string{"first", "slot", "steady"}, there: true, does: "attach", at: 100},
	{name: "replacement with a slot", base: []string{"first", "steady"}, there: true, slot: true, does: "attach", at: 100},
	{name: "first of three goes", base: []string{"slot", "steady"}, there: true, does: "detach", at: 1},
	{name: "middle of three with a slot goes", base: []string{"first", "steady"}, there: true, slot: true, does: "detach", at: 100},
	{name: "one is left", base: []string{"steady"}, there: true, slot: true, does: "detach", at: 100},
}

// A process is killed after each effect of a change, while packets flow. Those who stay meet every packet, and whoever
// comes next finishes the change or takes it back: by recovery, by trying again, or by detaching.
func TestKilledChangeLosesNoPacketAndIsFinishedByTheNext(t *testing.T) {
	for _, carrier := range []string{"xdp", "tcx", "clsact"} {
		for _, s := range scenarios {
			t.Run(carrier+" "+s.name, func(t *testing.T) {
				w := newWorld(t, carrier)
				w.options.MemberStats = carrier == "tcx"
				w.killAtEachEffect(t, s)
			})
		}
	}
}

func (w *world) killAtEachEffect(t *testing.T, s scenario) {
	verdict, neutral := w.neutral()
	base := map[string]Member{
		"first":  {Volume: "first", Program: "count", Priority: 10, ProceedOn: proceedOnPass(w)},
		"slot":   {Volume: "slot", Program: "count", Priority: 20, ProceedOn: proceedOnPass(w)},
		"steady": {Volume: "steady", Program: "count", Priority: 500, ProceedOn: neutral},
	}
	var stay []Member
	for _, name := range s.base {
		prog, _ := w.program(t, name, verdict)
		if name == "slot" {
			prog = w.slotted(t, prog)
		}
		w.mustAttach(t, base[name], prog)
		stay = append(stay, base[name])
	}
	packets := w.pinnedCounter(t, base["steady"])
	before := tree(t, w.root)
	one := errand{
		Does: s.does, Slot: s.slot, Stats: w.options.MemberStats,
		Member: Member{Volume: "errand", Program: "count", Priority: s.at, ProceedOn: proceedOnPass(w)},
	}
	all := append(slices.Clone(stay), one.Member)
	Order(all)

	f := w.flow(t, time.Millisecond)
	for step, visit := firstStep(), rand.IntN(3); ; step, visit = step+stride(), visit+1 {
		if step > 3*maxSteps {
			t.Fatal("too many effects")
		}
		if s.there {
			prog, _ := w.program(t, "there", verdict)
			if s.slot {
				prog = w.slotted(t, prog)
			}
			w.mustAttach(t, one.Member, prog)
		}
		one.Dies = step
		if !w.run(t, one) {
			if step < 10 {
				t.Errorf("only %d effects", step)
			}
			break
		}
		w.Dispatcher = w.restarted()
		switch visit % 3 {
		case 0:
			w.run(t, errand{Does: "recover", Stats: w.options.MemberStats, Dies: 1 + rand.IntN(8)}) // it may be killed, too
			if err := w.Recover(t.Context()); err != nil {
				t.Errorf("step %d: recover: %v", step, err)
			}
			w.wantMembers(t, step, stay, all)
		case 1:
			one.Dies = 0
			w.run(t, one)
			if s.does == "attach" {
				w.wantMembers(t, step, all)
				w.wantRun(t, w.pinnedCounter(t, one.Member))
			} else {
				w.wantMembers(t, step, stay)
			}
		}
		w.mustDetach(t, one.Member.Volume)
		w.wantMembers(t, step, stay)
		if diff := cmp.Diff(before, tree(t, w.root)); diff != "" {
			t.Errorf("step %d left (-before +after):\n%s", step, diff)
		}
	}
	w.mustDetach(t, one.Member.Volume)
	sent, lost := f.stop(t)
	sent += w.sent
	if met := counted(t, packets, sent); lost > 0 || met != sent {
		t.Errorf("of %d packets, %d met the member that was always there and %d did not arrive", sent, met, lost)
	}
	for _, m := range stay {
		w.mustDetach(t, m.Volume)
	}
}

// wantMembers wants the members of the point to be one of some sets, in order, and all of them to run.
func (w *world) wantMembers(t testing.TB, step int, sets ...[]Member) {
	t.Helper()
	var got []Member
	for _, m := range w.status(t).Members {
		if got = append(got, m.Member); m.Way == "" {
			t.Errorf("step %d: %s of %s does not run", step, m.Program, m.Volume)
		}
	}
	if !slices.ContainsFunc(sets, func(set []Member) bool { return slices.EqualFunc(set, got, Member.equal) }) {
		t.Errorf("step %d: members are %+v, want one of %+v", step, got, sets)
	}
}
