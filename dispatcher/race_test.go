// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// interfere does to what runs at the point what an administrator can do.
func (w *world) interfere(t testing.TB, prog *ebpf.Program) {
	t.Helper()
	s := &site{Dispatcher: w.Dispatcher, Point: w.point}
	if carriers[w.carrier].classic {
		if err := w.here.Do(func() error { return netlink.FilterReplace(s.filter(prog.FD())) }); err != nil {
			t.Error(err)
		}
		return
	}
	w.withLink(t, func(l link.Link) error { return l.Update(prog) })
}

func (w *world) withLink(t testing.TB, do func(link.Link) error) {
	t.Helper()
	l, err := link.LoadPinnedLink(fmt.Sprintf("%s/%s/%s", w.root, w.point.dirName(), linkPin), nil)
	if err != nil {
		t.Error(err)
		return
	}
	defer l.Close()
	if err := do(l); err != nil {
		t.Error(err)
	}
}

// Somebody who knows nothing of locks gives our link another program between the look and the swap.
func TestLostRaceStartsOver(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		pass := carriers[w.carrier].pass
		a, aPackets := w.program(t, "a", pass)
		b, bPackets := w.program(t, "b", pass)
		theirs, _ := w.program(t, "theirs", pass)
		one, two := first, second
		one.ProceedOn = proceedOnPass(w)
		w.mustAttach(t, one, a)
		for _, when := range []string{"program loaded", "next set pinned"} {
			races := 3
			w.step = func(name string) {
				if name == when && races > 0 {
					races--
					w.interfere(t, theirs.Program)
					w.interfere(t, a.Program)
					w.interfere(t, theirs.Program)
				}
			}
			w.mustAttach(t, two, b)
			w.wantRun(t, aPackets, bPackets)
			races = 3
			w.mustDetach(t, two.Volume)
			w.step = nil
			w.wantRun(t, aPackets)
		}
		w.mustDetach(t, one.Volume)
	})
}

// wantRun sends packets and wants each of the counters to count them.
func (w *world) wantRun(t testing.TB, packets ...*ebpf.Map) {
	t.Helper()
	var before []uint64
	for _, m := range packets {
		before = append(before, count(t, m))
	}
	w.send(t, 5)
	for i, m := range packets {
		if now := counted(t, m, before[i]+5); now < before[i]+5 {
			t.Errorf("counter %d: %d of 5 packets", i, now-before[i])
		}
	}
}

// Somebody who never stops is an error, and leaves the members as they were.
func TestRaceThatIsAlwaysLostIsAnError(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		pass := carriers[w.carrier].pass
		a, aPackets := w.program(t, "a", pass)
		b, _ := w.program(t, "b", pass)
		one, two := first, second
		one.ProceedOn = proceedOnPass(w)
		w.mustAttach(t, one, a)
		before := tree(t, w.root)
		tries := 0
		w.step = func(name string) {
			if name == "next set pinned" {
				tries++
				theirs, _ := w.program(t, fmt.Sprint("theirs", tries), pass)
				w.interfere(t, theirs.Program)
			}
		}
		_, err := w.attach(two, b)
		w.step = nil
		if !errors.Is(err, errRaced) || !strings.HasSuffix(err.Error(), "somebody else changed what runs, 10 times in a row") {
			t.Errorf("error is %v, want a lost race", err)
		}
		if diff := cmp.Diff(before, tree(t, w.root)); diff != "" {
			t.Errorf("pins changed (-before +after):\n%s", diff)
		}
		if err := w.Recover(t.Context()); err != nil { // takes back what is ours
			t.Error(err)
		}
		w.wantRun(t, aPackets)
		w.mustDetach(t, one.Volume)
	})
}

// Somebody ends our link, or deletes our filter, while a member comes or goes.
func TestWhatEndsDuringAChangeIsStartedAgainOrLeftAlone(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		pass := carriers[w.carrier].pass
		a, aPackets := w.program(t, "a", pass)
		b, bPackets := w.program(t, "b", pass)
		one, two := first, second
		one.ProceedOn = proceedOnPass(w)
		for _, when := range []string{"program loaded", "next set pinned"} {
			end := func(name string) {
				if name != when {
					return
				}
				w.step = nil
				w.end(t)
			}
			w.mustAttach(t, one, a)
			w.step = end
			w.mustAttach(t, two, b)
			w.wantRun(t, aPackets, bPackets)
			w.step = end
			w.mustDetach(t, two.Volume)
			if st := w.status(t); !st.Severed || len(st.Members) != 1 {
				t.Errorf("status is %+v, want one member, severed", st)
			}
			w.mustDetach(t, one.Volume)
			w.nothingLeft(t)
		}
	})
}

// end ends what is attached, as bpftool link detach and tc filter del do.
func (w *world) end(t testing.TB) {
	t.Helper()
	if !carriers[w.carrier].classic {
		w.withLink(t, link.Link.Detach)
		return
	}
	s := &site{Dispatcher: w.Dispatcher, Point: w.point}
	err := w.here.Do(func() error {
		f, err := s.findFilter()
		if err != nil {
			return err
		}
		return netlink.FilterDel(f)
	})
	if err != nil {
		t.Error(err)
	}
}
