// SPDX-License-Identifier: Apache-2.0

package provision

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

// serveHTTP answers /metrics and /healthz until ctx ends. One that waits for its turn is healthy.
func (p *process) serveHTTP(ctx context.Context, addr string) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		p.metrics.PersistentVolumeClaimProvisionTotal, p.metrics.PersistentVolumeClaimProvisionFailedTotal,
		p.metrics.PersistentVolumeClaimProvisionDurationSeconds,
		p.metrics.PersistentVolumeDeleteTotal, p.metrics.PersistentVolumeDeleteFailedTotal,
		p.metrics.PersistentVolumeDeleteDurationSeconds,
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := p.leader.Check(r); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--http: %w", err)
	}
	return nil
}
