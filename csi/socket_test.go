// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/internal/node"
)

func TestServeFinishesCallsInFlight(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	engine := &fakeEngine{publish: func(ctx context.Context, _ node.Request) error {
		close(entered)
		<-release
		return ctx.Err()
	}}
	r := serve(t, quiet(), Options{Engine: engine})
	answered := make(chan error, 1)
	go func() {
		_, err := r.node().NodePublishVolume(context.Background(), validRequest())
		answered <- err
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	select {
	case err := <-stopped:
		t.Fatalf("Serve returned %v with a call in flight", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	if err := <-answered; err != nil {
		t.Errorf("the call in flight: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := os.Lstat(r.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestSocketIsForRootAlone(t *testing.T) {
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}})
	for path, want := range map[string]os.FileMode{r.socket: 0o600, filepath.Dir(r.socket): 0o700} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode().Perm(), err, want)
		}
	}
}

func TestServeReplacesStaleSocketOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "csi.sock")
	s, err := New(Options{Driver: "csi.bpfvol.io", NodeID: "n", Engine: &fakeEngine{}})
	if err != nil {
		t.Fatal(err)
	}
	// What a killed process leaves: a socket that nobody listens on.
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	done, stop := context.WithCancel(t.Context())
	stop()
	if err := s.Serve(done, "unix://"+path); err != nil {
		t.Errorf("stale socket: %v", err)
	}

	live, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if err := s.Serve(t.Context(), "unix://"+path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("live socket: %v", err)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), "unix://"+file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("file: %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
		t.Errorf("the file is gone: %v", err)
	}
}

func TestEndpointMustBeASocketPath(t *testing.T) {
	s, err := New(Options{Driver: "csi.bpfvol.io", NodeID: "n", Engine: &fakeEngine{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, endpoint := range []string{"", "unix://relative", "tcp://127.0.0.1:1", "/run/csi.sock", "unix:///" + strings.Repeat("x", 107)} {
		if err := s.Serve(t.Context(), endpoint); err == nil {
			t.Errorf("%q was taken", endpoint)
		}
	}
}

func TestServeLeavesNoGoroutineNorFile(t *testing.T) {
	once := func() {
		r := serve(t, quiet(), Options{Engine: &fakeEngine{}, RegistryDir: t.TempDir()})
		for range 20 {
			if _, err := r.node().NodePublishVolume(t.Context(), validRequest()); err != nil {
				t.Fatal(err)
			}
			if err := Probe(t.Context(), "unix://"+r.socket); err != nil {
				t.Fatal(err)
			}
		}
		path := registrationSocket(t, r)
		for range 2 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			appears(t, path)
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		r.conn.Close()
	}
	once() // what the runtime and gRPC keep for good
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	once()
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > goroutines || openFiles(t) > files {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, were %d; %d files, were %d\n%s", runtime.NumGoroutine(), goroutines,
				openFiles(t), files, stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
