// SPDX-License-Identifier: Apache-2.0

// Package probes answers what a pod of bpfvol is asked over HTTP: kubelet's probes, and Prometheus.
package probes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options say what the answers are. Of a check, nil is well, and the text of an error is the answer, with status 503.
type Options struct {
	// Metrics are shown at /metrics, beside those of the process.
	Metrics []prometheus.Collector
	// Healthy is /healthz: if it fails, a restart helps.
	Healthy func(*http.Request) error
	// Ready is /readyz: if it fails, an admin does. Without it there is no such path.
	Ready func(*http.Request) error
}

// Serve answers at addr, the value of --http, until ctx ends.
func Serve(ctx context.Context, addr string, o Options) error {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics.MustRegister(o.Metrics...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.Handle("GET /healthz", answer(o.Healthy))
	if o.Ready != nil {
		mux.Handle("GET /readyz", answer(o.Ready))
	}
	server := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--http: %w", err)
	}
	return nil
}

func answer(check func(*http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := check(r); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}
