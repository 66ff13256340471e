// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/klog/v2/textlogger"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
)

// fakeEngine answers as its functions say; nil succeeds.
type fakeEngine struct {
	publish   func(context.Context, node.Request) error
	unpublish func(ctx context.Context, id, target string) error
	stats     func(id, target string) (int, error)
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

// running is a server that serves, and a client of it.
type running struct {
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
	r := &running{socket: socket, conn: conn, stop: sync.OnceValue(func() error {
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

// bufferedLog is a logger at the verbosity that shows everything we log, and what it has logged.
func bufferedLog(t *testing.T) (klog.Logger, ktesting.Buffer) {
	t.Helper()
	log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(4), ktesting.BufferLogs(true)))
	return log, log.GetSink().(ktesting.Underlier).GetBuffer()
}

func quiet() klog.Logger { return klog.Logger{} }

func TestIdentity(t *testing.T) {
	var recovered atomic.Bool
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}, Ready: recovered.Load})

	info, err := r.identity().GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "csi.bpfvol.io" || info.GetVendorVersion() != "v1.2.3" {
		t.Errorf("GetPluginInfo = %v, %v", info, err)
	}
	caps, err := r.identity().GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || len(caps.GetCapabilities()) != 0 {
		t.Errorf("GetPluginCapabilities = %v, %v; want none", caps, err)
	}
	for _, want := range []bool{false, true} {
		recovered.Store(want)
		probe, err := r.identity().Probe(t.Context(), &csi.ProbeRequest{})
		if err != nil || probe.GetReady().GetValue() != want {
			t.Errorf("Probe = %v, %v; want %v", probe, err, want)
		}
	}
}

func TestNodeInfo(t *testing.T) {
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}})
	info, err := r.node().NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	if err != nil || info.GetNodeId() != "node-1" || info.GetMaxVolumesPerNode() != 0 {
		t.Errorf("NodeGetInfo = %v, %v", info, err)
	}
	caps, err := r.node().NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range caps.GetCapabilities() {
		got = append(got, c.GetRpc().GetType().String())
	}
	if diff := cmp.Diff([]string{"VOLUME_MOUNT_GROUP", "GET_VOLUME_STATS"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestNotReadyIsNotFinal(t *testing.T) {
	engine := &fakeEngine{publish: func(context.Context, node.Request) error { return errors.New("called") }}
	r := serve(t, quiet(), Options{Engine: engine, Ready: func() bool { return false }})
	_, err := r.node().NodePublishVolume(t.Context(), validRequest())
	if got := status.Code(err); got != codes.Unavailable {
		t.Errorf("publish: %v, want Unavailable", err)
	}
	_, err = r.node().NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: testTarget})
	if got := status.Code(err); got != codes.Unavailable {
		t.Errorf("unpublish: %v, want Unavailable", err)
	}
}

func TestErrorsArriveAsCodeAndText(t *testing.T) {
	engine := &fakeEngine{publish: func(context.Context, node.Request) error {
		return fmt.Errorf("image %q: %w", "x\n"+strings.Repeat("y", 1000), image.ErrNotFound)
	}}
	r := serve(t, quiet(), Options{Engine: engine})
	_, err := r.node().NodePublishVolume(t.Context(), validRequest())
	s := status.Convert(err)
	if s.Code() != codes.NotFound || !strings.HasPrefix(s.Message(), `image "x\nyyy`) || len(s.Message()) > maxText || len(s.Details()) != 0 {
		t.Errorf("got %v, details %v", err, s.Details())
	}
}

func TestMethodsWeDoNotHaveAreUnimplemented(t *testing.T) {
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}})
	_, err := r.node().NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{})
	if s := status.Convert(err); s.Code() != codes.Unimplemented || s.Message() != "method NodeStageVolume not implemented" {
		t.Errorf("got %v", err)
	}
}

func TestVolumeStats(t *testing.T) {
	engine := &fakeEngine{stats: func(id, target string) (int, error) {
		if id != "v" || target != testTarget {
			return 0, node.ErrUnknownVolume
		}
		return 7, nil
	}}
	r := serve(t, quiet(), Options{Engine: engine})
	resp, err := r.node().NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: "v", VolumePath: testTarget})
	if err != nil || len(resp.GetUsage()) != 1 {
		t.Fatalf("got %v, %v; want one usage", resp, err)
	}
	if u := resp.GetUsage()[0]; u.GetUnit() != csi.VolumeUsage_INODES || u.GetUsed() != 7 {
		t.Errorf("got %v, want 7 inodes", u)
	}
	for _, c := range []struct {
		id, path string
		want     codes.Code
	}{
		{"", testTarget, codes.InvalidArgument},
		{"v", "", codes.InvalidArgument},
		{"other", testTarget, codes.NotFound},
		{"v", testTarget + "2", codes.NotFound},
	} {
		_, err := r.node().NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: c.id, VolumePath: c.path})
		if got := status.Code(err); got != c.want {
			t.Errorf("id %q path %q: %v, want %v", c.id, c.path, err, c.want)
		}
	}
}

func TestUnpublish(t *testing.T) {
	var got []string
	engine := &fakeEngine{unpublish: func(_ context.Context, id, target string) error {
		got = append(got, id+" "+target)
		return nil
	}}
	r := serve(t, quiet(), Options{Engine: engine})
	for _, c := range []struct {
		id, target string
		want       codes.Code
	}{
		{"", testTarget, codes.InvalidArgument},
		{"v", "", codes.InvalidArgument},
		{"v", testTarget, codes.OK},
	} {
		_, err := r.node().NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: c.id, TargetPath: c.target})
		if code := status.Code(err); code != c.want {
			t.Errorf("id %q target %q: %v, want %v", c.id, c.target, err, c.want)
		}
	}
	if diff := cmp.Diff([]string{"v " + testTarget}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPublishBudget(t *testing.T) {
	var left time.Duration
	engine := &fakeEngine{publish: func(ctx context.Context, _ node.Request) error {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return nil
	}}
	r := serve(t, quiet(), Options{Engine: engine})
	for _, c := range []struct {
		name             string
		caller, min, max time.Duration
	}{
		{"kubelet's two minutes leave time to answer", 2 * time.Minute, 100 * time.Second, 110 * time.Second},
		{"a shorter deadline holds", 20 * time.Second, 10 * time.Second, 20 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), c.caller)
			defer cancel()
			if _, err := r.node().NodePublishVolume(ctx, validRequest()); err != nil {
				t.Fatal(err)
			}
			if left < c.min || left > c.max {
				t.Errorf("the engine had %v, want %v to %v", left, c.min, c.max)
			}
		})
	}
}

func TestPanicIsUndone(t *testing.T) {
	for _, c := range []struct {
		name string
		undo func() error
		want codes.Code
	}{
		{"undone: final", func() error { return nil }, codes.Internal},
		{"not undone: kubelet will unpublish", func() error { return errors.New("busy") }, codes.Aborted},
		{"undo panics, too", func() error { panic("again") }, codes.Aborted},
	} {
		t.Run(c.name, func(t *testing.T) {
			var undone []string
			engine := &fakeEngine{
				publish: func(context.Context, node.Request) error { panic("boom") },
				unpublish: func(ctx context.Context, id, target string) error {
					undone = append(undone, id+" "+target)
					return c.undo()
				},
			}
			log, logged := bufferedLog(t)
			r := serve(t, log, Options{Engine: engine})
			_, err := r.node().NodePublishVolume(t.Context(), validRequest())
			if got := status.Code(err); got != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if diff := cmp.Diff([]string{"csi-6ee1 " + testTarget}, undone); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(err.Error(), "goroutine") {
				t.Errorf("stack in the message: %v", err)
			}
			if c.want == codes.Internal && !strings.Contains(logged.String(), "TestPanicIsUndone") {
				t.Errorf("no stack in the log:\n%s", logged)
			}
			if _, err := r.identity().Probe(t.Context(), &csi.ProbeRequest{}); err != nil {
				t.Errorf("the server does not answer after a panic: %v", err)
			}
		})
	}
}

func TestLogNamesMethodVolumePodAndCode(t *testing.T) {
	engine := &fakeEngine{publish: func(ctx context.Context, _ node.Request) error {
		klog.FromContext(ctx).Info("engine at work")
		return image.ErrNotFound
	}}
	log, logged := bufferedLog(t)
	r := serve(t, log, Options{Engine: engine})
	_, _ = r.node().NodePublishVolume(t.Context(), validRequest())
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"engine at work", "call refused"} {
		got := lineWith(t, logged.String(), line)
		for _, want := range []string{`method="NodePublishVolume"`, `volume="csi-6ee1"`, `pod="shop/web-0"`} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %s in %q", line, want, got)
			}
		}
	}
	if got := lineWith(t, logged.String(), "call refused"); !strings.Contains(got, `code="NotFound"`) || !strings.Contains(got, "duration=") {
		t.Errorf("no code or duration in %q", got)
	}
}

func lineWith(t *testing.T, log, part string) string {
	t.Helper()
	for line := range strings.Lines(log) {
		if strings.Contains(line, part) {
			return line
		}
	}
	t.Fatalf("no line with %q in\n%s", part, log)
	return ""
}

func TestLogHidesSecrets(t *testing.T) {
	var text strings.Builder
	log := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&text), textlogger.Verbosity(10)))
	r := serve(t, log, Options{Engine: &fakeEngine{}})
	req := validRequest()
	req.Secrets = map[string]string{"password": "hunter2"}
	req.VolumeContext["csi.storage.k8s.io/serviceAccount.tokens"] = `{"": {"token": "hunter3"}}`
	req.VolumeContext["csi.storage.k8s.io/of.a.later.version"] = "hunter4"
	req.VolumeContext["variables"] = strings.Repeat("x", 100_000)
	if _, err := r.node().NodePublishVolume(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	req.VolumeCapability.GetMount().MountFlags = []string{"password=hunter5"}
	if _, err := r.node().NodePublishVolume(t.Context(), req); err == nil {
		t.Fatal("mount flags were taken")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	got := text.String()
	if strings.Contains(got, "hunter") {
		t.Errorf("the log tells a secret:\n%s", got)
	}
	if !strings.Contains(got, "ghcr.io/acme/count:v1") {
		t.Errorf("the log does not show the request:\n%s", got)
	}
	if len(got) > 10_000 {
		t.Errorf("two calls fill %d bytes of log", len(got))
	}
}

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

func TestNewRefusesNames(t *testing.T) {
	for _, o := range []Options{
		{Driver: "", NodeID: "n"},
		{Driver: "csi.bpfvol.io1", NodeID: "n"},
		{Driver: strings.Repeat("x", 64), NodeID: "n"},
		{Driver: "csi/bpfvol", NodeID: "n"},
		{Driver: "csi.bpfvol.io"},
		{Driver: "csi.bpfvol.io", NodeID: strings.Repeat("n", 257)},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("driver %q, node %q were taken", o.Driver, o.NodeID)
		}
	}
}

func TestServeLeavesNoGoroutineNorFile(t *testing.T) {
	once := func() {
		r := serve(t, quiet(), Options{Engine: &fakeEngine{}})
		for range 20 {
			if _, err := r.node().NodePublishVolume(t.Context(), validRequest()); err != nil {
				t.Fatal(err)
			}
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
