// SPDX-License-Identifier: Apache-2.0

package events

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// answer is the end of a call that is no single publish of a new volume.
type answer struct {
	code codes.Code
	says string
}

var (
	otherArguments = answer{codes.AlreadyExists, "volume: already published with other arguments; unpublish it first"}
	inFlight       = answer{codes.Aborted, "volume: operation in flight; it will be tried again"}
	stillPulling   = answer{codes.Aborted, "image $IMAGE: pull still running; try again"}
	notUnpinned    = answer{codes.Aborted, "could not take everything away: pins: directory not empty; look at the node plugin's bpffs directory"}
	notTakenAway   = answer{codes.Aborted, `could not take everything away: target: a file system of type "tmpfs" is mounted there; unmount it`}
	noPolicy       = answer{codes.PermissionDenied, `image $IMAGE: no policy is in force; an admin must add a BytecodePolicy whose images include "$REGISTRY/acme/count"`}
)

func (n *node) want(t *testing.T, req *csi.NodePublishVolumeRequest, err error, a answer) {
	t.Helper()
	n.wantEvent(t, req, err, a.code, a.says)
}

// shows fails if the target does not show a map.
func shows(t *testing.T, req *csi.NodePublishVolumeRequest, name string) {
	t.Helper()
	if _, err := os.ReadFile(filepath.Join(req.TargetPath, "json", name)); err != nil {
		t.Error(err)
	}
}

func TestPublishAgainWithOtherArguments(t *testing.T) {
	n := newNode(t)
	req := n.published(t, map[string]string{"image": count, "attach": onEth0})
	if err := n.publish(t, req); err != nil {
		t.Errorf("the same request again: %v", err)
	}
	before := n.snapshot(t)
	for what, change := range map[string]func(*csi.NodePublishVolumeRequest){
		"image":    func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["image"] += "x" },
		"group":    func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().VolumeMountGroup = "2000" },
		"readOnly": func(r *csi.NodePublishVolumeRequest) { r.Readonly = true },
		"context": func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.GetMount().MountFlags = []string{"context=system_u:object_r:container_file_t:s0"}
		},
	} {
		t.Run(what, func(t *testing.T) {
			other := proto.CloneOf(req)
			change(other)
			n.want(t, other, n.publish(t, other), otherArguments)
		})
	}
	for _, what := range n.snapshot(t).Since(before) {
		t.Error("made by a refused call:", what)
	}
	shows(t, req, "flows")
}

func TestCallsWhilePublishIsInFlight(t *testing.T) {
	n := newNode(t)
	req := n.request(t, map[string]string{"image": count, "attach": onEth0})
	before := n.snapshot(t)
	asked, release := make(chan struct{}, 100), make(chan struct{})
	n.registry.InterceptFor(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		asked <- struct{}{}
		<-release
		next.ServeHTTP(w, r)
	})
	first := make(chan error)
	go func() { first <- n.publish(t, req) }()
	<-asked
	n.want(t, req, n.unpublish(t, req), inFlight)
	n.want(t, req, n.publish(t, req), inFlight)
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	shows(t, req, "flows")
	if err := n.unpublish(t, req); err != nil {
		t.Error(err)
	}
	n.wantNothing(t, before, req)
}

func TestUnpublishOfNothing(t *testing.T) {
	n := newNode(t)
	unknown := n.request(t, nil)
	if err := n.unpublish(t, unknown); err != nil {
		t.Errorf("a volume that never was: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	elsewhere := proto.CloneOf(unknown)
	elsewhere.TargetPath = filepath.Dir(file)
	if err := n.unpublish(t, elsewhere); err != nil {
		t.Errorf("at a path that is not kubelet's: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("it was touched: %v", err)
	}

	req := n.request(t, map[string]string{"image": count, "attach": onEth0})
	before := n.snapshot(t)
	if err := n.publish(t, req); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"first", "second"} {
		if err := n.unpublish(t, req); err != nil {
			t.Errorf("%s call: %v", call, err)
		}
	}
	n.wantNothing(t, before, req)
}

// What somebody else put into the volume is his. The volume is kept until he takes it away.
func TestTeardownThatCannotFinish(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		name      string
		put, take func(req *csi.NodePublishVolumeRequest) error
		says      answer
	}{
		{
			"Mount",
			func(req *csi.NodePublishVolumeRequest) error {
				return unix.Mount("somebody", req.TargetPath, "tmpfs", 0, "")
			},
			func(req *csi.NodePublishVolumeRequest) error { return unix.Unmount(req.TargetPath, 0) },
			notTakenAway,
		},
		{
			"Pins",
			func(req *csi.NodePublishVolumeRequest) error {
				return os.Mkdir(filepath.Join(n.BPFFSDir(), "volumes", req.VolumeId, "his"), 0o700)
			},
			func(req *csi.NodePublishVolumeRequest) error {
				return os.Remove(filepath.Join(n.BPFFSDir(), "volumes", req.VolumeId, "his"))
			},
			notUnpinned,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := n.request(t, map[string]string{"image": count, "attach": onEth0})
			before := n.snapshot(t)
			if err := n.publish(t, req); err != nil {
				t.Fatal(err)
			}
			if err := c.put(req); err != nil {
				t.Fatal(err)
			}
			n.want(t, req, n.unpublish(t, req), c.says)
			if err := c.take(req); err != nil {
				t.Fatal(err)
			}
			if err := n.unpublish(t, req); err != nil {
				t.Error(err)
			}
			n.wantNothing(t, before, req)
		})
	}
}

func TestSpoiledCacheIsRepaired(t *testing.T) {
	n := newNode(t)
	req := n.request(t, map[string]string{"image": count, "attach": onEth0})
	before := n.snapshot(t)
	cached(t, n, req)
	spoil(t, n)
	cached(t, n, req)
	n.wantNothing(t, before, req)
	for _, blob := range blobs(t, n) {
		data, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != filepath.Base(blob) {
			t.Errorf("blob %s is still spoiled", filepath.Base(blob))
		}
	}
}

// The event has one line of what the verifier says, the daemon's log all of it, up to a MiB.
func TestVerifierLogIsInTheDaemonsLog(t *testing.T) {
	n := newNode(t)
	n.digests[n.Stack.Registry+"/open/rejected"] = imagetest.PushImage(t, n.Stack.Registry, "open/rejected", "v1", bpf.Rejected())
	req := n.request(t, map[string]string{"image": "$REGISTRY/open/rejected:v1", "attach": "{program: rejected, xdp: eth0}"})
	before := n.snapshot(t)
	err := n.publish(t, req)
	if err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("error is %q, want one line", err)
	}
	n.wantNothing(t, before, req)
	log := n.log.String()
	_, log, _ = strings.Cut(log, "program rejected by the verifier")
	if len(log) < 1<<20 || !strings.Contains(log, "rejected.bpf.c") || !strings.Contains(log, "\nprocessed ") && !strings.Contains(log, "\tprocessed ") {
		t.Errorf("the daemon's log has %d bytes of it, which end in %q", len(log), log[max(0, len(log)-500):])
	}
}

func TestWithoutPolicies(t *testing.T) {
	n := newNode(t)
	if err := n.StopDaemon(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(n.PolicyDir(), "policies.yaml")); err != nil {
		t.Fatal(err)
	}
	n.start(t)
	req := n.request(t, map[string]string{"image": count, "attach": onEth0})
	before := n.snapshot(t)
	n.want(t, req, n.publish(t, req), noPolicy)
	n.wantNothing(t, before, req)
}
