// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// sizes are how many members are at a point.
var sizes = []int{1, 10, 50}

// BenchmarkBuild is what a change of membership does before the kernel swaps programs: everything is read from pins, put
// together, and loaded. `make bench BENCH=dispatcher` prints it beside what the kernel takes.
func BenchmarkBuild(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b, "xdp")
			w.crowd(b, n)
			for b.Loop() {
				if err := w.build(); err != nil {
					b.Fatal(err)
				}
			}
			w.leave(b, n)
		})
	}
}

func (w *world) build() error {
	s, err := w.open(context.Background(), w.point, false)
	if err != nil {
		return err
	}
	defer s.close()
	built, err := s.build()
	if err != nil {
		return err
	}
	built.close()
	return nil
}

// BenchmarkAttachDetach lets one more member come and go. The kernel's grace periods are nearly all of it.
func BenchmarkAttachDetach(b *testing.B) {
	for carrier := range carriers {
		for _, n := range append([]int{0}, sizes...) {
			b.Run(fmt.Sprintf("%s/%d", carrier, n), func(b *testing.B) {
				w := newWorld(b, carrier)
				w.crowd(b, n)
				prog, _ := w.program(b, "count", carriers[carrier].pass)
				m := Member{Volume: "more", Program: "count", ProceedOn: proceedOnPass(w)}
				var attaching, detaching time.Duration
				err := w.here.Do(func() error {
					for b.Loop() {
						start := time.Now()
						if _, err := w.Attach(context.Background(), w.point, volume.XDPAuto, m, prog); err != nil {
							return err
						}
						middle := time.Now()
						if err := w.Detach(context.Background(), m.Volume); err != nil {
							return err
						}
						attaching += middle.Sub(start)
						detaching += time.Since(middle)
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(attaching.Microseconds())/float64(b.N), "us/attach")
				b.ReportMetric(float64(detaching.Microseconds())/float64(b.N), "us/detach")
				w.leave(b, n)
			})
		}
	}
}

// crowd attaches n members.
func (w *world) crowd(b *testing.B, n int) {
	b.Helper()
	for i := range n {
		prog, _ := w.program(b, "count", carriers[w.carrier].pass)
		w.mustAttach(b, Member{Volume: crowdVolume(i), Program: "count", Priority: 500, ProceedOn: proceedOnPass(w)}, prog)
	}
}

func (w *world) leave(b *testing.B, n int) {
	b.Helper()
	for i := range n {
		w.mustDetach(b, crowdVolume(i))
	}
}

func crowdVolume(i int) string { return fmt.Sprintf("volume%02d", i) }
