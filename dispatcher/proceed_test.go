// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// told makes a program that counts its packets and returns what a map says.
func (w *world) told(t testing.TB, name string, verdict *ebpf.Map) (Program, *ebpf.Map) {
	t.Helper()
	packets := w.counter(t, "packets")
	insns := append(countOne("packets", 0),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, 0).WithReference("verdict"),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R0, asm.R0, 0, asm.DWord),
		asm.Return().WithSymbol("out"))
	return w.load(t, name, insns, map[string]*ebpf.Map{"packets": packets, "verdict": verdict}), packets
}

// tried are verdicts with a name and without: a shift by 34 or -30 is one by 2 on most processors, and 32 bits are what
// counts of a register.
var tried = []int64{-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 30, 31, 32, 33, 34, 63, 64, 66, 255, 256, 258, -30, -32, -62, math.MinInt32,
	math.MaxInt32, 1<<32 + 2, 1 << 32, -1 << 32}

// A member hands on exactly where its verdict is in its proceedOn, wherever it stands and however it runs, and the result
// is what the last that ran says: pass or unspec if it would have handed on, else its own.
func TestProceedOnDecidesWhoRunsAndWhatResults(t *testing.T) {
	places := map[string]int{"lone": 0, "first": 50, "middle": 150, "last": 250} // priorities: others have 100 and 200

	if testing.Short() { // an emulated machine
		delete(places, "first")
		delete(places, "last")
	}
	for _, carrier := range []string{"xdp", "clsact"} {
		for place, priority := range places {
			for _, way := range []Way{Fused, Slot} {
				t.Run(fmt.Sprint(carrier, " ", place, " ", way), func(t *testing.T) {
					w := newWorld(t, carrier)
					var others []int
					if place != "lone" {
						others = []int{100, 200}
					}
					w.proceed(t, priority, way, others)
				})
			}
		}
	}
}

// settings are values of proceedOn, the default first.
var settings = map[ebpf.ProgramType][][]volume.Verdict{
	ebpf.XDP: {{"pass"}, {}, {"drop"}, {"aborted", "tx", "redirect", "dispatcherReturn"}, slices.Sorted(maps.Keys(volume.XDPVerdicts))},
	ebpf.SchedCLS: {{"ok", "pipe"}, {}, {"unspec"}, {"shot", "stolen"}, {"queued", "repeat", "reclassify", "redirect", "trap", "dispatcherReturn"},
		slices.Sorted(maps.Keys(volume.TCVerdicts))},
}

// proceed tries every verdict with every setting of a member among others.
func (w *world) proceed(t *testing.T, priority int, way Way, others []int) {
	typ := carriers[w.carrier].typ
	done := map[ebpf.ProgramType]uint32{ebpf.XDP: 2, ebpf.SchedCLS: math.MaxUint32}[typ]
	verdict := w.counter(t, "verdict")
	prog, packets := w.told(t, "told", verdict)
	if way == Slot {
		prog = w.slotted(t, prog)
	}
	before, all := 0, []*ebpf.Map{}
	for i, p := range others {
		other, counter := w.program(t, "other", carriers[w.carrier].pass)
		w.mustAttach(t, Member{Volume: fmt.Sprint("other", i), Program: "count", Priority: p, ProceedOn: proceedOnPass(w)}, other)
		if all = append(all, counter); p < priority {
			before++
		}
	}
	all = slices.Insert(all, before, packets)
	for _, proceedOn := range settings[typ] {
		w.mustAttach(t, Member{Volume: "told", Program: "told", Priority: priority, ProceedOn: proceedOn}, prog)
		for _, v := range tried {
			if err := verdict.Put(uint32(0), uint64(v)); err != nil {
				t.Fatal(err)
			}
			on := proceedsOn(typ, proceedOn, v)
			want := uint32(v)
			if on {
				want = done
			}
			was := counts(t, all)
			got, _, err := w.runningProgram(t).Test(make([]byte, 64))
			if err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("%v returned %d: the result is %d, want %d", proceedOn, v, int32(got), int32(want))
			}
			for i, n := range counts(t, all) {
				if ran, want := n-was[i], i <= before || on; ran > 1 || ran == 1 != want {
					t.Errorf("%v returned %d: member %d of %d ran %d times", proceedOn, v, i, len(all), ran)
				}
			}
		}
	}
	w.mustDetach(t, "told")
	for i := range others {
		w.mustDetach(t, fmt.Sprint("other", i))
	}
}

// proceedsOn says what proceedOn means, in plain words.
func proceedsOn(typ ebpf.ProgramType, proceedOn []volume.Verdict, v int64) bool {
	known := volume.XDPVerdicts
	if typ == ebpf.SchedCLS {
		known = volume.TCVerdicts
		if int32(v) == -1 {
			return true
		}
	}
	return slices.ContainsFunc(proceedOn, func(name volume.Verdict) bool { return int32(known[name]) == int32(v) })
}

func counts(t testing.TB, all []*ebpf.Map) (n []uint64) {
	t.Helper()
	for _, m := range all {
		n = append(n, count(t, m))
	}
	return n
}

// What packets meet: a firewall stops those behind it, unless it says that what it drops goes on, and being alone or not
// makes no difference to a member.
func TestFirewallStopsPacketsForMembersBehindIt(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		c := carriers[w.carrier]
		verdict := w.counter(t, "verdict")
		firewall, met := w.told(t, "firewall", verdict)
		behind, seen := w.program(t, "behind", c.pass)
		dropped := map[bool][]volume.Verdict{true: {"drop"}, false: {"shot"}}[c.typ == ebpf.XDP]
		for _, step := range []struct {
			verdict   int32
			proceedOn []volume.Verdict
			through   bool
		}{
			{c.pass, proceedOnPass(w), true},
			{c.drop, proceedOnPass(w), false},
			{c.drop, dropped, true},
			{c.pass, dropped, true}, // its own verdict, and nobody else is asked
		} {
			if err := verdict.Put(uint32(0), uint64(uint32(step.verdict))); err != nil {
				t.Fatal(err)
			}
			m := first
			m.ProceedOn = step.proceedOn
			w.mustAttach(t, m, firewall)
			for _, alone := range []bool{true, false} {
				if !alone {
					w.mustAttach(t, second, behind)
				}
				was := []uint64{count(t, met), count(t, seen)}
				err := w.ping()
				if step.through && err != nil || !step.through && !errors.Is(err, bpftest.ErrNoReply) {
					t.Errorf("%d, %v, alone %v: ping says %v", step.verdict, step.proceedOn, alone, err)
				}
				if counted(t, met, was[0]+1) == was[0] {
					t.Errorf("%d, %v, alone %v: the firewall met no packet", step.verdict, step.proceedOn, alone)
				}
				handsOn := !alone && proceedsOn(c.typ, step.proceedOn, int64(step.verdict))
				if now := count(t, seen); now > was[1] != handsOn {
					t.Errorf("%d, %v, alone %v: the one behind met %d packets", step.verdict, step.proceedOn, alone, now-was[1])
				}
				w.mustDetach(t, second.Volume)
			}
		}
		w.mustDetach(t, first.Volume)
	})
}
