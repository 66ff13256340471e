// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bpfvol/bpfvol/internal/node"
)

// metrics are those of the node plugin.
func metrics(engine *node.Engine, reconciler *node.Reconciler) []prometheus.Collector {
	return append(reconciling(reconciler),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bpfvol_volumes", Help: "Volumes with a record on this node."}, func() float64 {
			volumes, err := engine.Count()
			if err != nil {
				return -1
			}
			return float64(volumes)
		}),
	)
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
