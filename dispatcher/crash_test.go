// SPDX-License-Identifier: Apache-2.0

package dispatcher

import "testing"

// maxSteps is more than the effects of any call.
const maxSteps = 40

func TestKilledAttachLeavesNothingForGood(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, packets := w.program(t, "count", carriers[w.carrier].pass)
		step := 1
		for ; w.run(t, errand{Does: "attach", Member: first, Dies: step}); step++ {
			if step > maxSteps {
				t.Fatal("too many steps")
			}
			// Recovery by tearing down.
			w.mustDetach(t, first.Volume)
			w.nothingLeft(t)

			// Recovery by trying again.
			if !w.run(t, errand{Does: "attach", Member: first, Dies: step}) {
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
			if !w.run(t, errand{Does: "attach", Member: first, Dies: step}) {
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
		prog, packets := w.program(t, "count", carriers[w.carrier].pass)
		for step := 1; ; step++ {
			w.mustAttach(t, first, prog)
			if !w.run(t, errand{Does: "attach", Member: first, Dies: step}) { // with another program: this is a replacement
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
			w.run(t, errand{Does: "attach", Member: first, Dies: step})
			w.mustDetach(t, first.Volume)
			w.nothingLeft(t)
		}
		w.mustDetach(t, first.Volume)
	})
}

func TestKilledDetachIsFinishedByTheNext(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, _ := w.program(t, "count", carriers[w.carrier].pass)
		step := 1
		for ; ; step++ {
			w.mustAttach(t, first, prog)
			if !w.run(t, errand{Does: "detach", Member: first, Dies: step}) {
				break
			}
			w.mustDetach(t, first.Volume)
			w.nothingLeft(t)

			w.mustAttach(t, first, prog)
			w.run(t, errand{Does: "detach", Member: first, Dies: step})
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
