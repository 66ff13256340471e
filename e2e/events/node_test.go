// SPDX-License-Identifier: Apache-2.0

package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/e2e/stack"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/kernelstate"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// policies are in force on the node of every test; $REGISTRY and $KEY are replaced. What the image is called decides
// which one rules.
const policies = `
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: acme}
spec:
  images: ["$REGISTRY/acme/**"]
  authorities: [{key: {data: "$KEY"}}]
  subjects: [team/app]
---
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: open}
spec:
  images: ["$REGISTRY/open/**", "192.0.2.1/**", "registry.invalid/**"]
  unsigned: true
  allow:
    hooks: [xdp, tc, tracepoint, rawTracepoint, kprobe, kretprobe, fentry, fexit, uprobe, uretprobe, lsm, cgroup, perfEvent, iter, netfilter, skLookup, netkit]
    writableMaps: ["*"]
    maxMapBytes: 1Pi
  subjects: [team/app]
---
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: narrow}
spec:
  images: ["$REGISTRY/narrow/**"]
  unsigned: true
  allow:
    interfaces: ["eth0"]
    priority: {min: 100, max: 900}
    maxMapBytes: 1Mi
    maxPrograms: 1
    maxInstructions: 85
    helpers: {deny: [bpf_get_current_comm]}
  subjects: [team/app]
---
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: empty}
spec:
  images: ["$REGISTRY/empty/**"]
  subjects: [team/app]
`

// node is a node with a registry, policies and the real daemon.
type node struct {
	*stack.Stack
	csi      csi.NodeClient
	registry *imagetest.Gate
	log      *lockedBuffer
	volumes  int
	digests  map[string]digest.Digest // of images, by name
}

// newNode starts a node, which ends with the test. The image $REGISTRY/acme/count:v1 is there, signed.
func newNode(t *testing.T) *node {
	t.Helper()
	bpftest.Root(t)
	if os.Getenv(binVariable) == "" {
		t.Skip("there is no go to build bpfvol; name a built one in " + binVariable)
	}
	n := &node{registry: &imagetest.Gate{}, log: &lockedBuffer{}, digests: map[string]digest.Digest{}}
	var err error
	n.Stack, err = stack.New(stack.Options{Bin: os.Getenv(binVariable), Registry: n.registry.Before, Log: n.log, Verbosity: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("%v\n%s", err, n.log)
		}
	})
	key, err := os.ReadFile(n.KeyPrefix() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	text := n.expand(strings.ReplaceAll(policies, "$KEY", strings.ReplaceAll(string(key), "\n", `\n`)))
	if err := os.WriteFile(filepath.Join(n.PolicyDir(), "policies.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d := imagetest.PushImage(t, n.Stack.Registry, "acme/count", "v1", bpf.Count())
	n.digests[n.Stack.Registry+"/acme/count"] = d
	n.sign(t, "acme/count", d)
	n.start(t)
	conn, err := grpc.NewClient(n.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n.csi = csi.NewNodeClient(conn)
	return n
}

// expand puts the registry's host into text.
func (n *node) expand(text string) string {
	return strings.ReplaceAll(text, "$REGISTRY", n.Stack.Registry)
}

func (n *node) start(t *testing.T) {
	t.Helper()
	if _, err := n.StartDaemon(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, n.log)
	}
}

// restart ends the daemon by sig and starts it again.
func (n *node) restart(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := n.StopDaemon(sig); err != nil {
		t.Fatal(err)
	}
	n.start(t)
}

// sign signs an image of the registry with the key of policy acme.
func (n *node) sign(t *testing.T, repository string, d digest.Digest) {
	t.Helper()
	key, err := os.ReadFile(n.KeyPrefix() + ".key")
	if err != nil {
		t.Fatal(err)
	}
	n.signBy(t, key, repository, d)
}

func (n *node) signBy(t *testing.T, key []byte, repository string, d digest.Digest) {
	t.Helper()
	ref := imagetest.Reference(t, n.Stack.Registry+"/"+repository+"@"+d.String())
	sig, err := cosign.Sign(t.Context(), key, nil, d, ref, image.FormatTag)
	if err != nil {
		t.Fatal(err)
	}
	if err := imagetest.Store(t, n.Stack.Registry).AttachSignature(t.Context(), ref, sig); err != nil {
		t.Fatal(err)
	}
}

// request is what kubelet sends for the volume of a new pod of service account team/app.
func (n *node) request(t *testing.T, attributes map[string]string) *csi.NodePublishVolumeRequest {
	t.Helper()
	n.volumes++
	uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", n.volumes)
	parent := filepath.Join(n.KubeletDir(), "pods", uid, "volumes", "kubernetes.io~csi", "bpf")
	if err := os.MkdirAll(parent, 0o750); err != nil {
		t.Fatal(err)
	}
	context := map[string]string{
		"csi.storage.k8s.io/pod.name":            "app-0",
		"csi.storage.k8s.io/pod.namespace":       "team",
		"csi.storage.k8s.io/pod.uid":             uid,
		"csi.storage.k8s.io/serviceAccount.name": "app",
		"csi.storage.k8s.io/ephemeral":           "true",
	}
	for key, value := range attributes {
		context[key] = n.expand(value)
	}
	return &csi.NodePublishVolumeRequest{
		VolumeId:   "csi-" + uid,
		TargetPath: filepath.Join(parent, "mount"),
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: context,
	}
}

// callTimeout is kubelet's.
const callTimeout = 2 * time.Minute

func (n *node) publish(t *testing.T, req *csi.NodePublishVolumeRequest) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	_, err := n.csi.NodePublishVolume(ctx, req)
	return err
}

// unpublish works in cleanups, too.
func (n *node) unpublish(t *testing.T, req *csi.NodePublishVolumeRequest) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), callTimeout)
	defer cancel()
	_, err := n.csi.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: req.VolumeId, TargetPath: req.TargetPath})
	return err
}

// published publishes a volume that goes with the test.
func (n *node) published(t *testing.T, attributes map[string]string) *csi.NodePublishVolumeRequest {
	t.Helper()
	req := n.request(t, attributes)
	if err := n.publish(t, req); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.unpublish(t, req); err != nil {
			t.Error(err)
		}
	})
	return req
}

// snapshot is what exists on the node before a call.
func (n *node) snapshot(t *testing.T) kernelstate.Snapshot {
	t.Helper()
	s, err := kernelstate.Take(n.Kept()...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wantNothing fails if anything is left of a volume, or anything new exists since before: program, link, map, mount,
// pin, record, target.
func (n *node) wantNothing(t *testing.T, before kernelstate.Snapshot, req *csi.NodePublishVolumeRequest) {
	t.Helper()
	left, err := kernelstate.Leftovers(t.Context(), before, n.Kept()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range left {
		t.Error("left behind:", what)
	}
	if _, err := os.Lstat(filepath.Join(n.BPFFSDir(), "volumes", req.VolumeId)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory of the pins: error is %v, want none there", err)
	}
}

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
