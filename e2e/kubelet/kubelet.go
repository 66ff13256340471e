// SPDX-License-Identifier: Apache-2.0

// Package kubelet is a stand-in that does for one CSI volume what kubelet does (pkg/volume/csi/csi_mounter.go of
// Kubernetes 1.37): the same directories and files, the same request, the same reaction to errors, the same event text.
// The demo, the benchmarks and tests use it where there is no cluster.
//
//	k, err := kubelet.Connect(ctx, "unix:///run/bpfvol/csi.sock", "/var/lib/kubelet")
//	target, err := k.SetUp(ctx, pod, kubelet.Volume{Name: "bpf", Attributes: attributes})
//	...
//	err = k.TearDown(ctx, pod, "bpf")
//
// What holds, and the test that shows it:
//   - a volume that failed with a final code is forgotten without a call of NodeUnpublishVolume, one that failed with
//     another code is kept, and TearDown unpublishes it (TestFinalErrorsForgetTheVolume);
//   - it removes only empty directories and its own file (TestTearDownKeepsWhatIsMounted).
package kubelet

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// callTimeout bounds each call (csiTimeout in pkg/volume/csi/csi_plugin.go).
const callTimeout = 2 * time.Minute

// Kubelet calls one CSI driver.
type Kubelet struct {
	dir    string
	driver string
	groups bool // the driver takes a pod's fsGroup
	conn   *grpc.ClientConn
	node   csi.NodeClient
}

// Pod is what a driver learns of a pod.
type Pod struct {
	Namespace, Name, UID, ServiceAccount string
	FSGroup                              *int64
}

// Volume is an entry of a pod's volumes with a csi source.
type Volume struct {
	Name       string
	Attributes map[string]string
	ReadOnly   bool
	// Persistent says that it is a PersistentVolume, of which kubelet passes on the attributes alike. Handle is its
	// volumeHandle, which all of its pods have in common; empty: it is this pod's alone.
	Persistent bool
	Handle     string
}

// id is the volume's own where it has one, else that of the pod's volume.
func (v Volume) id(p Pod) string { return cmp.Or(v.Handle, VolumeID(p, v.Name)) }

// MountError is why a volume could not be set up. Its text is that of the pod's FailedMount event.
type MountError struct {
	Volume string
	Status *status.Status
}

func (e *MountError) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Status.Err())
}

// Final says whether the volume is forgotten: NodeUnpublishVolume will not be called (isFinalError in
// pkg/volume/csi/csi_client.go).
func (e *MountError) Final() bool {
	switch e.Status.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	}
	return true
}

// Connect waits until the driver at endpoint is ready and asks who it is. Pods are kept below dir.
// The caller must Close the result.
func Connect(ctx context.Context, endpoint, dir string) (_ *Kubelet, err error) {
	conn, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A driver that is just starting should not cost a second.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: time.Second},
			MinConnectTimeout: 10 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
	)
	if err != nil {
		return nil, fmt.Errorf("driver at %s: %w", endpoint, err)
	}
	k := &Kubelet{dir: dir, conn: conn, node: csi.NewNodeClient(conn)}
	defer func() {
		if err != nil {
			conn.Close()
			err = fmt.Errorf("driver at %s: %w", endpoint, err)
		}
	}()
	identity := csi.NewIdentityClient(conn)
	if err := waitReady(ctx, identity); err != nil {
		return nil, err
	}
	info, err := identity.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	if err != nil {
		return nil, err
	}
	k.driver = info.GetName()
	capabilities, err := k.node.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		return nil, err
	}
	k.groups = slices.ContainsFunc(capabilities.GetCapabilities(), func(c *csi.NodeServiceCapability) bool {
		return c.GetRpc().GetType() == csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP
	})
	return k, nil
}

func waitReady(ctx context.Context, identity csi.IdentityClient) error {
	for {
		probe, err := identity.Probe(ctx, &csi.ProbeRequest{})
		if err != nil {
			return err
		}
		if probe.GetReady() == nil || probe.GetReady().GetValue() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Close ends the connection. Volumes stay.
func (k *Kubelet) Close() error { return k.conn.Close() }

// Driver is the driver's name.
func (k *Kubelet) Driver() string { return k.driver }

// VolumeID is the id of a pod's inline volume (makeVolumeHandle in pkg/volume/csi/csi_mounter.go).
func VolumeID(p Pod, volume string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(p.UID+volume)))
}

// SetUp publishes a volume of a pod and returns its target. An answer of the driver that is an error is a *MountError.
// Calling it again is what kubelet does after any error, and after its own restart.
func (k *Kubelet) SetUp(ctx context.Context, p Pod, v Volume) (target string, err error) {
	d := k.volumeDir(p, v.Name)
	if err := d.make(k.driver, v.id(p), v.Persistent); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := k.node.NodePublishVolume(ctx, k.request(p, v)); err != nil {
		failed := &MountError{Volume: v.Name, Status: status.Convert(err)}
		if failed.Final() {
			if err := d.remove(); err != nil {
				return "", fmt.Errorf("%w; then: %w", failed, err)
			}
		}
		return "", failed
	}
	return d.target(), nil
}

// request is the call for a volume of a driver whose CSIDriver object says podInfoOnMount: true.
func (k *Kubelet) request(p Pod, v Volume) *csi.NodePublishVolumeRequest {
	attributes := make(map[string]string, len(v.Attributes)+5)
	maps.Copy(attributes, v.Attributes)
	maps.Copy(attributes, map[string]string{ // over the user's
		"csi.storage.k8s.io/pod.name":            p.Name,
		"csi.storage.k8s.io/pod.namespace":       p.Namespace,
		"csi.storage.k8s.io/pod.uid":             p.UID,
		"csi.storage.k8s.io/serviceAccount.name": p.ServiceAccount,
		"csi.storage.k8s.io/ephemeral":           strconv.FormatBool(!v.Persistent),
	})
	mount := &csi.VolumeCapability_MountVolume{}
	if p.FSGroup != nil && k.groups {
		mount.VolumeMountGroup = strconv.FormatInt(*p.FSGroup, 10)
	}
	return &csi.NodePublishVolumeRequest{
		VolumeId:   v.id(p),
		TargetPath: k.volumeDir(p, v.Name).target(),
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: mount},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		Readonly:      v.ReadOnly,
		VolumeContext: attributes,
	}
}

// TearDown unpublishes a volume of a pod and removes its directories. A volume that was never set up, or was forgotten
// after a final error, is not the driver's any more: it is not called.
func (k *Kubelet) TearDown(ctx context.Context, p Pod, volume string) error {
	d := k.volumeDir(p, volume)
	id, err := d.volumeID()
	if id == "" || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := k.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: d.target()}); err != nil {
		return fmt.Errorf("UnmountVolume.TearDown failed for volume %q : %w", volume, err)
	}
	return d.remove()
}
