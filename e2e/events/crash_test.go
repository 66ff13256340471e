// SPDX-License-Identifier: Apache-2.0

package events

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/bpfvol/bpfvol/internal/kernelstate"
)

// kills is at how many moments of a call the daemon dies. (internal/node, TestKilledAfterEachStage: after each stage.)
const kills = 12

// Whenever the daemon is killed, after its restart the volume is whole or nothing of it is left, kubelet's retry works,
// and so does what comes after.
func TestKilledAtAnyMoment(t *testing.T) {
	n := newNode(t)
	attributes := map[string]string{"image": count, "attach": "[" + onEth0 + ", {program: on_exec, tracepoint: syscalls/sys_enter_execve}]"}
	cached(t, n, n.request(t, attributes))
	for name, call := range map[string]func(*testing.T, *csi.NodePublishVolumeRequest) error{"Publish": n.publish, "Unpublish": n.unpublish} {
		t.Run(name, func(t *testing.T) {
			var took time.Duration // undisturbed
			survived := 0
			for i := range kills + 1 {
				req := n.request(t, attributes)
				before := n.snapshot(t)
				if name == "Unpublish" {
					if err := n.publish(t, req); err != nil {
						t.Fatal(err)
					}
				}
				start := time.Now()
				done := make(chan error, 1)
				go func() { done <- call(t, req) }()
				if i == 0 {
					if err := <-done; err != nil {
						t.Fatal(err)
					}
					took = time.Since(start)
				} else {
					// No event to wait for: the moment is what is tried.
					time.Sleep(took * time.Duration(i-1) / kills)
					n.restart(t, syscall.SIGKILL)
					if <-done == nil {
						survived++
					}
				}
				n.wantWholeOrNothing(t, before, req)
				if err := n.publish(t, req); err != nil {
					t.Errorf("retry after the kill: %v", err)
				}
				shows(t, req, "flows")
				if err := n.unpublish(t, req); err != nil {
					t.Errorf("unpublish after the kill: %v", err)
				}
				n.wantNothing(t, before, req)
			}
			t.Logf("%d of %d calls were done before the kill", survived, kills)
		})
	}
}

func (n *node) wantWholeOrNothing(t *testing.T, before kernelstate.Snapshot, req *csi.NodePublishVolumeRequest) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(n.StateDir(), "volumes", req.VolumeId+".json")); errors.Is(err, fs.ErrNotExist) {
		n.wantNothing(t, before, req)
		return
	}
	shows(t, req, "flows")
}

func TestKilledWhilePulling(t *testing.T) {
	n := newNode(t)
	req := n.request(t, map[string]string{"image": count, "attach": onEth0})
	before := n.snapshot(t)
	asked := make(chan struct{}, 100)
	n.registry.Intercept(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		// Half of something, and then nothing until the daemon is dead.
		w.Header().Set("Content-Length", "1000")
		w.Write(make([]byte, 500))
		w.(http.Flusher).Flush()
		asked <- struct{}{}
		<-r.Context().Done()
	})
	done := make(chan error)
	go func() { done <- n.publish(t, req) }()
	<-asked
	n.registry.Intercept(nil)
	n.restart(t, syscall.SIGKILL)
	if err := <-done; err == nil {
		t.Error("the call of the killed daemon succeeded")
	}
	n.wantNothing(t, before, req)
	half, err := filepath.Glob(filepath.Join(n.CacheDir(), "oci", "ingest", "*"))
	if err != nil || len(half) > 0 {
		t.Errorf("half-written blobs: %v, %v", half, err)
	}
	cached(t, n, req)
	n.wantNothing(t, before, req)
}
