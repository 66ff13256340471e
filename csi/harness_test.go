// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/node"
)

// fakeEngine answers as its functions say; nil succeeds.
type fakeEngine struct {
	publish   func(context.Context, node.Request) error
	unpublish func(ctx context.Context, id, target string) error
	stats     func(id, target string) (int, error)
	health    func(id, target string) (node.Health, error)
}

func (e *fakeEngine) Publish(ctx context.Context, req node.Request) error {
	if e.publish == nil {
		return nil
	}
	return e.publish(ctx, req)
}

func (e *fakeEngine) Unpublish(ctx context.Context, id, target string) error {
	if e.unpublish == nil {
		return nil
	}
	return e.unpublish(ctx, id, target)
}

func (e *fakeEngine) Stats(_ context.Context, id, target string) (int, error) {
	if e.stats == nil {
		return 0, nil
	}
	return e.stats(id, target)
}

func (e *fakeEngine) Health(_ context.Context, id, target string) (node.Health, error) {
	if e.health == nil {
		return node.Health{Healthy: true}, nil
	}
	return e.health(id, target)
}

// running is a server that serves, and a client of it.
type running struct {
	server *Server
	socket string
	conn   *grpc.ClientConn
	stop   func() error // idempotent
}

func (r *running) node() csi.NodeClient         { return csi.NewNodeClient(r.conn) }
func (r *running) identity() csi.IdentityClient { return csi.NewIdentityClient(r.conn) }

// quickRedial is for the first dial, which may come before the socket is there.
var quickRedial = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond},
	MinConnectTimeout: 10 * time.Second,
})

// serve starts a server on a socket of its own and waits until it answers.
func serve(t *testing.T, log klog.Logger, opts Options) *running {
	t.Helper()
	if opts.Driver == "" {
		opts.Driver, opts.NodeID, opts.Version = "csi.bpfvol.io", "node-1", "v1.2.3"
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), log))
	socket := filepath.Join(t.TempDir(), "run", "csi.sock")
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, "unix://"+socket) }()

	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), quickRedial)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{server: s, socket: socket, conn: conn, stop: sync.OnceValue(func() error {
		cancel()
		return <-served
	})}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
		conn.Close()
	})
	if _, err := r.identity().Probe(t.Context(), &csi.ProbeRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	return r
}

func quiet() klog.Logger { return klog.Logger{} }
