// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/bpfvol/bpfvol/internal/node"
)

// checks are what kubelet's probes of a pod ask for. Nil is well, and the text of an error is the answer.
type checks struct {
	healthy func(context.Context) error // else a restart helps
	ready   func() error                // else an admin does
}

// serveHTTP answers /metrics, /healthz and /readyz until ctx ends.
func serveHTTP(ctx context.Context, addr string, engine *node.Engine, reconciler *node.Reconciler, checks checks) error {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bpfvol_volumes", Help: "Volumes with a record on this node."}, func() float64 {
			volumes, err := engine.Count()
			if err != nil {
				return -1
			}
			return float64(volumes)
		}),
	)
	metrics.MustRegister(reconciling(reconciler)...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { answer(w, checks.healthy(r.Context())) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, checks.ready()) })
	server := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stopped <- server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--http: %w", err)
	}
	return <-stopped
}

// reconciling are the metrics of what the node plugin looks after by itself; docs/recovery.md says what to do about each.
func reconciling(r *node.Reconciler) []prometheus.Collector {
	gauge := func(name, help string, of func(node.Report) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return of(r.Last()) })
	}
	counter := func(name, help string, of func(node.Report) int) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(of(r.Last())) })
	}
	return []prometheus.Collector{
		gauge("bpfvol_volumes_unhealthy", "Volumes of which something does not run, or is not shown.",
			func(r node.Report) float64 { return float64(r.Unhealthy) }),
		gauge("bpfvol_records_unreadable", "Records of volumes that cannot be read; their volumes are left as they are.",
			func(r node.Report) float64 { return float64(r.Unreadable) }),
		gauge("bpfvol_points_foreign", "Interfaces where a program that is not bpfvol's took the place of its own.",
			func(r node.Report) float64 { return float64(r.Foreign) }),
		gauge("bpfvol_reconcile_seconds", "How long the last look at all volumes took.",
			func(r node.Report) float64 { return r.Took.Seconds() }),
		counter("bpfvol_repairs_total", "Programs and pins that were brought back after others took them away.",
			func(r node.Report) int { return r.Repairs }),
		counter("bpfvol_repair_failures_total", "Tries to bring something back that failed.",
			func(r node.Report) int { return r.Failures }),
		counter("bpfvol_orphans_removed_total", "Volumes taken away because their pods are gone.",
			func(r node.Report) int { return r.Orphans }),
	}
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
