// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// BenchmarkPublish is a warm publish without the socket, and how long each stage of it takes.
func BenchmarkPublish(b *testing.B) {
	f := newFixture(b)
	ns, _ := bpftest.Pair(b)
	for _, c := range []struct{ name, image, attach string }{
		{"tracepoint", f.signed(b, "hooks", hooks()), onGetpgid},
		{"xdp", f.signed(b, "count", bpf.Count()), "{program: count, xdp: {interface: veth0}}"},
	} {
		b.Run(c.name, func(b *testing.B) {
			if err := ns.Do(func() error { return f.bench(b, c.image, c.attach) }); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func (f *fixture) bench(b *testing.B, image, attach string) error {
	stages := map[Stage]time.Duration{}
	var last time.Time
	opts := f.opts
	opts.Reached = func(s Stage) {
		now := time.Now()
		stages[s] += now.Sub(last)
		last = now
	}
	engine, err := Open(opts)
	if err != nil {
		return err
	}
	var publish, unpublish time.Duration
	for b.Loop() {
		req := f.request(b, image, attach)
		start := time.Now()
		last = start
		if err := engine.Publish(f.ctx, req); err != nil {
			return err
		}
		publish += time.Since(start)
		start = time.Now()
		if err := engine.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
			return err
		}
		unpublish += time.Since(start)
	}
	for _, s := range Stages {
		b.ReportMetric(float64(stages[s].Microseconds())/float64(b.N), "µs/"+string(s))
	}
	b.ReportMetric(float64(publish.Microseconds())/float64(b.N), "µs/publish")
	b.ReportMetric(float64(unpublish.Microseconds())/float64(b.N), "µs/unpublish")
	return nil
}

// BenchmarkPass is what a look at a hundred volumes costs that are all well: a tracepoint each, and one in ten also XDP.
func BenchmarkPass(b *testing.B) {
	const volumes = 100
	f := newFixture(b)
	ns, _ := bpftest.Pair(b)
	hooks, count := f.signed(b, "hooks", hooks()), f.signed(b, "count", bpf.Count())
	for i := range volumes {
		req := f.request(b, hooks, "{program: on_raw_tracepoint, rawTracepoint: sys_enter}")
		if i%10 == 0 {
			req = f.request(b, count, "{program: count, xdp: {interface: veth0}}")
		}
		f.publishIn(b, ns, req)
	}
	r := NewReconciler(f.Engine, ReconcileOptions{Repair: true, Grace: grace})
	pass := func() error { return r.Pass(f.ctx) }
	cpu := processorTime(b)
	for b.Loop() {
		if err := ns.Do(pass); err != nil {
			b.Fatal(err)
		}
	}
	if got := r.Last(); got.Repairs+got.Failures > 0 {
		b.Fatalf("report is %+v, want nothing done", got)
	}
	b.ReportMetric(float64((processorTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/pass")
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
