// SPDX-License-Identifier: Apache-2.0

package events

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/bpfvol/bpfvol/bpf"
	server "github.com/bpfvol/bpfvol/csi"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	engine "github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/verify"
)

// hurried gives its first calls a tenth of a second, where the daemon has 110 seconds, which no test can wait for.
type hurried struct {
	*engine.Engine
	calls atomic.Int32
}

func (h *hurried) Publish(ctx context.Context, req engine.Request) error {
	if h.calls.Add(-1) >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
	}
	return h.Engine.Publish(ctx, req)
}

// A pull that takes longer than a call may goes on, and a later call of kubelet finds it done. (internal/image,
// TestLyingRegistry: a registry that never answers is Unavailable; csi, TestPublishBudget: the budget is 110 seconds.)
func TestPullLongerThanTheCall(t *testing.T) {
	bpftest.Root(t)
	bpftest.NothingLeft(t)
	registry := imagetest.Start(t)
	imagetest.PushImage(t, registry.Host, "open/hooks", "v1", bpf.Hooks())
	asked, release := make(chan struct{}, 100), make(chan struct{})
	registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		asked <- struct{}{}
		<-release
		next.ServeHTTP(w, r)
	})
	dir := t.TempDir()
	e, err := engine.Open(engine.Options{
		StateDir: filepath.Join(dir, "state"), BPFFSDir: filepath.Join(bpftest.BPFFS(t), "bpfvol"),
		Images: imagetest.Store(t, registry.Host), Policies: verify.Static{verify.UnsignedPolicy()},
	})
	if err != nil {
		t.Fatal(err)
	}
	const hurriedCalls = 2
	h := &hurried{Engine: e}
	h.calls.Store(hurriedCalls)
	s, err := server.New(server.Options{Driver: "csi.bpfvol.io", NodeID: "node", Engine: h})
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "unix://" + filepath.Join(dir, "csi.sock")
	serving, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(serving, endpoint) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := csi.NewNodeClient(conn)

	image := registry.Host + "/open/hooks:v1"
	req := &csi.NodePublishVolumeRequest{
		VolumeId: "csi-1", TargetPath: filepath.Join(dir, "mount"),
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			"image": image, "attach": onTrace,
			"csi.storage.k8s.io/pod.name": "app-0", "csi.storage.k8s.io/pod.namespace": "local", "csi.storage.k8s.io/serviceAccount.name": "root",
			"csi.storage.k8s.io/ephemeral": "true",
		},
	}
	want := strings.ReplaceAll(stillPulling.says, "$IMAGE", image)
	for range hurriedCalls {
		_, err := client.NodePublishVolume(t.Context(), req)
		if got := status.Convert(err); got.Code() != stillPulling.code || got.Message() != want {
			t.Errorf("got %v: %s; want %v: %s", got.Code(), got.Message(), stillPulling.code, want)
		}
	}
	if n := len(asked); n != 1 {
		t.Errorf("the registry was asked %d times for one image", n)
	}
	close(release)
	if _, err := client.NodePublishVolume(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	shows(t, req, "hits")
	if _, err := client.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: req.VolumeId, TargetPath: req.TargetPath}); err != nil {
		t.Error(err)
	}
}
