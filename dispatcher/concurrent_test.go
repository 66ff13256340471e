// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// Processes attach and detach at one point at once. What is there at the end is who attached and did not detach, in order.
func TestProcessesThatChangeAPointAtOnceLeaveTheSet(t *testing.T) {
	for _, carrier := range []string{"xdp", "tcx", "clsact"} {
		t.Run(carrier, func(t *testing.T) {
			w := newWorld(t, carrier)
			var all, stay []Member
			for i := range 8 {
				m := Member{Volume: fmt.Sprint("v", i), Program: "count", Priority: 10 - i/2, ProceedOn: proceedOnPass(w)}
				if all = append(all, m); i%2 == 0 {
					stay = append(stay, m)
				}
			}
			Order(stay)
			atOnce := func(members []Member, does string) {
				var wg sync.WaitGroup
				for i, m := range members {
					wg.Go(func() {
						if _, err := w.start(t, errand{Does: does, Member: m, Slot: i%3 == 0}); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			}
			leave := slices.DeleteFunc(slices.Clone(all), func(m Member) bool { return slices.ContainsFunc(stay, m.same) })
			atOnce(all, "attach")
			atOnce(leave, "detach")
			w.wantMembers(t, 0, stay)
			atOnce(append(leave, stay[0]), "attach")
			atOnce(all, "detach")
		})
	}
}

// Goroutines attach and detach at both directions of one interface, by link and by filter: the qdisc that carries filters
// is shared by both, and whoever leaves last takes it away.
func TestPointsThatChangeAtOnceLeaveTheirSets(t *testing.T) {
	for _, classic := range []bool{false, true} {
		t.Run(map[bool]string{false: "links", true: "filters"}[classic], func(t *testing.T) {
			names := []string{"xdp", "tcx", "tcx egress"}
			if classic {
				names = []string{"clsact", "clsact egress"}
			}
			w := newWorld(t, names[len(names)-1])
			points := map[string]*world{}
			for _, name := range names {
				points[name] = &world{Dispatcher: w.Dispatcher, carrier: name, here: w.here, there: w.there, point: w.resolve(t, carriers[name].hook)}
			}
			var mu sync.Mutex
			want := map[Point][]Member{}
			var wg sync.WaitGroup
			for i := range 6 {
				w := points[names[i%len(names)]]
				prog, _ := w.program(t, fmt.Sprint("count", i), carriers[w.carrier].pass)
				if i%4 == 3 {
					prog = w.slotted(t, prog)
				}
				wg.Go(func() {
					m := Member{Volume: fmt.Sprint("v", i), Program: "count", Priority: i, ProceedOn: proceedOnPass(w)}
					for round := range 20 {
						if _, err := w.attach(m, prog); err != nil {
							t.Error(err)
							return
						}
						if round == 19 && i%2 == 0 {
							break
						}
						if err := w.Detach(t.Context(), m.Volume); err != nil {
							t.Error(err)
							return
						}
						if rand.IntN(4) == 0 {
							if _, err := w.Status(); err != nil {
								t.Error(err)
							}
						}
					}
					if i%2 == 0 {
						mu.Lock()
						defer mu.Unlock()
						want[w.point] = append(want[w.point], m)
					}
				})
			}
			wg.Wait()
			got := map[Point][]Member{}
			all, err := w.Status()
			if err != nil {
				t.Fatal(err)
			}
			for _, st := range all {
				for _, m := range st.Members {
					if got[st.Point] = append(got[st.Point], m.Member); st.Severed || m.Way == "" {
						t.Errorf("%s: %s does not run", st.Point, m.Volume)
					}
				}
			}
			for members := range maps.Values(want) {
				Order(members)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("members (-want +got):\n%s", diff)
			}
			for i := range 6 {
				w.mustDetach(t, fmt.Sprint("v", i))
			}
		})
	}
}

// A member that comes in one direction while the last of the other goes is not taken away with the qdisc.
func TestQdiscStaysForWhoComesFromTheOtherDirection(t *testing.T) {
	w := newWorld(t, "clsact")
	prog, _ := w.program(t, "count", 0)
	in := w.point
	w.point = w.resolve(t, carriers["clsact egress"].hook)
	w.mustAttach(t, second, prog)
	w.point = in
	var wg sync.WaitGroup
	w.step = func(name string) {
		if name != "qdisc added" {
			return
		}
		w.step = nil
		gone := make(chan struct{})
		wg.Go(func() {
			defer close(gone)
			if err := w.Detach(t.Context(), second.Volume); err != nil {
				t.Error(err)
			}
		})
		select {
		case <-gone:
		case <-time.After(100 * time.Millisecond): // it waits for us
		}
	}
	w.mustAttach(t, first, prog)
	wg.Wait()
	if st := w.status(t); st.Severed {
		t.Errorf("status is %+v", st)
	}
	w.mustDetach(t, first.Volume)
}

// Who makes the first point makes the directory of all, which who ended the last one may be removing at that moment.
func TestDirectoryOfAllPointsGoesAndComes(t *testing.T) {
	bpftest.Root(t)
	d := New(filepath.Join(bpftest.BPFFS(t), "points"), Options{Types: types})
	ended := make(chan struct{})
	var removing sync.WaitGroup
	removing.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
				d.removeEmpty()
			}
		}
	})
	var making sync.WaitGroup
	for i := range 2 {
		making.Go(func() {
			dir := filepath.Join(d.root, fmt.Sprint("xdp-", i))
			for range 5000 {
				if err := d.makeDir(dir); err != nil {
					t.Error(err)
					return
				}
				if err := os.Remove(dir); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	making.Wait()
	close(ended)
	removing.Wait()
	d.removeEmpty()
}
