// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"
	"time"
)

// BenchmarkPublish is a warm publish on a tracepoint without the socket, and how long each stage of it takes.
func BenchmarkPublish(b *testing.B) {
	f := newFixture(b)
	image := f.signed(b, "hooks", hooks())
	stages := map[Stage]time.Duration{}
	last := time.Time{}
	f.opts.Reached = func(s Stage) {
		now := time.Now()
		stages[s] += now.Sub(last)
		last = now
	}
	f.restart(b)
	var publish, unpublish time.Duration
	for b.Loop() {
		req := f.request(b, image, onGetpgid)
		start := time.Now()
		last = start
		if err := f.Publish(f.ctx, req); err != nil {
			b.Fatal(err)
		}
		publish += time.Since(start)
		start = time.Now()
		if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
			b.Fatal(err)
		}
		unpublish += time.Since(start)
	}
	for _, s := range Stages {
		b.ReportMetric(float64(stages[s].Microseconds())/float64(b.N), "µs/"+string(s))
	}
	b.ReportMetric(float64(publish.Microseconds())/float64(b.N), "µs/publish")
	b.ReportMetric(float64(unpublish.Microseconds())/float64(b.N), "µs/unpublish")
}
