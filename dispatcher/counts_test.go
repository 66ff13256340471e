// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// The point counts on whoever changes its members; Recover alone ends it, and keeps what was counted.
func TestPointCountsOnWhoeverChangesIt(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		counting := New(w.root, Options{Types: types, MemberStats: true})
		counting.classic = w.classic
		c := carriers[w.carrier]
		passing, dropping := first, second
		passing.ProceedOn = proceedOnPass(w)
		pass, _ := w.program(t, "pass", c.pass)
		drop, _ := w.program(t, "drop", c.drop)
		err := w.here.Do(func() error {
			_, err := counting.Attach(t.Context(), w.point, volume.XDPAuto, passing, pass)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		passed, dropped := "pass", "drop"
		if w.point.Kind == volume.KindTC {
			passed, dropped = "ok", "shot"
		}
		w.send(t, 3)
		w.wantCounts(t, map[string]Counts{"first": {Packets: 3, Verdicts: map[string]uint64{passed: 3}}})
		w.mustAttach(t, dropping, drop)
		w.send(t, 2)
		w.wantCounts(t, map[string]Counts{
			"first":  {Packets: 5, Verdicts: map[string]uint64{passed: 5}},
			"second": {Packets: 2, Verdicts: map[string]uint64{dropped: 2}},
		})
		w.mustDetach(t, dropping.Volume)
		w.send(t, 1)
		w.wantCounts(t, map[string]Counts{"first": {Packets: 6, Verdicts: map[string]uint64{passed: 6}}})

		if err := w.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.send(t, 1)
		w.wantCounts(t, map[string]Counts{})
		if err := counting.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.wantCounts(t, map[string]Counts{"first": {Packets: 6, Verdicts: map[string]uint64{passed: 6}}})
		w.mustDetach(t, passing.Volume)
	})
}

// wantCounts waits until just so much is counted, by volume.
func (w *world) wantCounts(t *testing.T, want map[string]Counts) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		points, err := w.Status()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]Counts{}
		for _, p := range points {
			for _, m := range p.Members {
				if m.Counts != nil {
					got[m.Volume] = *m.Counts
				}
			}
		}
		diff := cmp.Diff(want, got)
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("counts (-want +got):\n%s", diff)
		}
	}
}
