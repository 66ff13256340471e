// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// BenchmarkAttachDetach puts the dispatcher beside bare cilium/ebpf: attach, pin, detach, unpin. The kernel's grace
// periods are nearly all of both.
func BenchmarkAttachDetach(b *testing.B) {
	for _, carrier := range []string{"xdp", "tcx", "clsact"} {
		w := newWorld(b, carrier)
		prog, _ := w.program(b, "count", carriers[carrier].pass)
		b.Run(carrier+"/dispatcher", func(b *testing.B) {
			var attaching, detaching time.Duration
			w.timed(b, &attaching, &detaching, func() error {
				_, err := w.Attach(context.Background(), w.point, volume.XDPAuto, first, prog)
				return err
			}, func() error {
				return w.Detach(context.Background(), first.Volume)
			})
		})
		if carrier == "clsact" {
			continue // nothing bare to put beside it
		}
		b.Run(carrier+"/bare", func(b *testing.B) {
			var attaching, detaching time.Duration
			var l link.Link
			pin := filepath.Join(filepath.Dir(w.root), "bare")
			w.timed(b, &attaching, &detaching, func() (err error) {
				if carrier == "xdp" {
					l, err = link.AttachXDP(link.XDPOptions{Program: prog.Program, Interface: w.point.IfIndex, Flags: link.XDPDriverMode})
				} else {
					l, err = link.AttachTCX(link.TCXOptions{Program: prog.Program, Interface: w.point.IfIndex, Attach: ebpf.AttachTCXIngress})
				}
				if err != nil {
					return err
				}
				return l.Pin(pin)
			}, func() error {
				if err := l.Detach(); err != nil {
					return err
				}
				if err := l.Unpin(); err != nil {
					return err
				}
				return l.Close()
			})
		})
	}
}

func (w *world) timed(b *testing.B, attaching, detaching *time.Duration, attach, detach func() error) {
	err := w.here.Do(func() error {
		for b.Loop() {
			start := time.Now()
			if err := attach(); err != nil {
				return err
			}
			middle := time.Now()
			if err := detach(); err != nil {
				return err
			}
			*attaching += middle.Sub(start)
			*detaching += time.Since(middle)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(attaching.Microseconds())/float64(b.N), "us/attach")
	b.ReportMetric(float64(detaching.Microseconds())/float64(b.N), "us/detach")
}
