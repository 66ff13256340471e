// SPDX-License-Identifier: Apache-2.0

package events

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// secret gives a volume a Secret of one key.
func secret(key, value string) func(*testing.T, *node, *csi.NodePublishVolumeRequest) {
	return func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.Secrets = map[string]string{key: value}
	}
}

// mountFlags gives a volume mount options.
func mountFlags(flags ...string) func(*testing.T, *node, *csi.NodePublishVolumeRequest) {
	return capability(func(m *csi.VolumeCapability_MountVolume) { m.MountFlags = flags })
}

// requestRefusals are about what kubelet says.
var requestRefusals = []refusal{
	{name: "Block", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	}, code: codes.InvalidArgument,
		says: `volumeMode: Block: a bytecode volume is a directory; use Filesystem`,
	},
	{name: "FSType", attributes: attach(onEth0), arrange: capability(func(m *csi.VolumeCapability_MountVolume) { m.FsType = "ext4" }), code: codes.InvalidArgument,
		says: `fsType: "ext4": a bytecode volume has no file system type; leave it out`,
	},
	{name: "MountOptions", attributes: attach(onEth0), arrange: mountFlags("ro"), code: codes.InvalidArgument,
		says: `mountOptions: a bytecode volume takes none but context=; leave the others out`,
	},
	{name: "ContextTwice", attributes: attach(onEth0), arrange: mountFlags("context=u:r:t", "context=u:r:t"), code: codes.InvalidArgument,
		says: `mountOptions: context= is given twice; give it once`,
	},
	{name: "LongContext", attributes: attach(onEth0), arrange: mountFlags("context=u:r:" + strings.Repeat("t", 256)), code: codes.InvalidArgument,
		says: `mountOptions: context= has $N bytes; at most 255 are possible`,
	},
	{name: "NoContext", attributes: attach(onEth0), arrange: mountFlags("context=container_file_t"), code: codes.InvalidArgument,
		says: `mountOptions: context= is no SELinux context; write one like system_u:object_r:container_file_t:s0`,
	},
	{name: "ContextWithoutSELinux", attributes: attach(onEth0), arrange: mountFlags(`context="system_u:object_r:container_file_t:s0:c1,c2"`), code: codes.FailedPrecondition,
		says: `SELinux context "system_u:object_r:container_file_t:s0:c1,c2": not known on this node: SELinux is off; leave context= out of mountOptions`,
	},
	{name: "ReadOnlyAndWritable", attributes: with(attach(onEth0), "maps", "flows:rw"), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.Readonly = true
	}, code: codes.InvalidArgument,
		says: `volumeAttributes: maps: map "flows" is rw in a volume with readOnly: true; leave one of the two out`,
	},
	{name: "Group", attributes: attach(onEth0), arrange: capability(func(m *csi.VolumeCapability_MountVolume) { m.VolumeMountGroup = "wheel" }), code: codes.InvalidArgument,
		says: `volume mount group: "wheel": must be a group number from 0 to 4294967294`,
	},
	{name: "SecretOfAnotherType", attributes: attach(onEth0), arrange: secret("password", "hunter2"), code: codes.InvalidArgument,
		says: `nodePublishSecretRef: the Secret is not of type kubernetes.io/dockerconfigjson; make it with kubectl create secret docker-registry`,
	},
	{name: "SecretWithoutLogin", attributes: attach(onEth0), arrange: secret(".dockerconfigjson", `{"auths": {}, "credsStore": "desktop"}`), code: codes.InvalidArgument,
		says: `nodePublishSecretRef: no user with a password in the Secret (credsStore names a program, and none is run); make it with kubectl create secret docker-registry`,
	},
	{name: "SecretNoJSON", attributes: attach(onEth0), arrange: secret(".dockerconfigjson", "hunter2"), code: codes.InvalidArgument,
		says: `nodePublishSecretRef: .dockerconfigjson: is not the JSON of a docker config; it should look like {"auths": {"ghcr.io": {"auth": "..."}}}`,
	},
	{name: "SecretBrokenLogin", attributes: attach(onEth0), arrange: secret(".dockercfg", `{"ghcr.io": {"auth": "hunter2!"}}`), code: codes.InvalidArgument,
		says: `nodePublishSecretRef: .dockercfg: "ghcr.io": auth is not base64 of user:password; log in again, or create the Secret again`,
	},
	{name: "NoPodInfo", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		delete(req.VolumeContext, "csi.storage.k8s.io/serviceAccount.name")
	}, code: codes.InvalidArgument,
		says: `csi.storage.k8s.io/serviceAccount.name: missing; set podInfoOnMount: true in the CSIDriver object`,
	},
	{name: "NotSaidWhetherPersistent", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		delete(req.VolumeContext, "csi.storage.k8s.io/ephemeral")
	}, code: codes.InvalidArgument,
		says: `csi.storage.k8s.io/ephemeral: missing; set podInfoOnMount: true in the CSIDriver object`,
	},
	{name: "PersistentByWordOfTheUser", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.VolumeContext["csi.storage.k8s.io/ephemeral"] = "no"
	}, code: codes.InvalidArgument,
		says: `csi.storage.k8s.io/ephemeral: "no": is not a word of kubelet's; set podInfoOnMount: true in the CSIDriver object`,
	},
	{name: "NoAccessMode", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.VolumeCapability.AccessMode = nil
	}, code: codes.InvalidArgument,
		says: `volume capability: access mode missing`,
	},
	{name: "LongVolumeID", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.VolumeId = strings.Repeat("x", 129)
	}, code: codes.InvalidArgument,
		says: `volume id: 129 bytes: at most 128 are allowed`,
	},
	{name: "LongTarget", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.TargetPath += strings.Repeat("/x", 2048)
	}, code: codes.InvalidArgument,
		says: `target path: $N bytes: at most 4095 are allowed`,
	},
	{name: "PodName", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.VolumeContext["csi.storage.k8s.io/pod.namespace"] = "team/app"
	}, code: codes.InvalidArgument,
		says: `csi.storage.k8s.io/pod.namespace: "team/app": is no name of a Kubernetes object`,
	},
	{name: "TargetOutside", attributes: attach(onEth0), arrange: func(t *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.TargetPath = filepath.Join(t.TempDir(), "mount")
	}, code: codes.InvalidArgument,
		says: `csi.storage.k8s.io/pod.uid: is not the pod whose directory the target path is in; set podInfoOnMount: true in the CSIDriver object`,
	},
	{name: "TargetOfAnotherPod", attributes: attach(onEth0), arrange: func(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
		req.TargetPath = n.request(t, nil).TargetPath
	}, code: codes.InvalidArgument,
		says: `csi.storage.k8s.io/pod.uid: is not the pod whose directory the target path is in; set podInfoOnMount: true in the CSIDriver object`,
	},
	{name: "TargetDots", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.TargetPath = filepath.Dir(req.TargetPath) + "/../bpf/mount"
	}, code: codes.InvalidArgument,
		says: `target: must be an absolute path without . or ..`,
	},
}

// targetRefusals are about what is at the target.
var targetRefusals = []refusal{
	{name: "TargetMounted", attributes: attach(onEth0), arrange: mounted, code: codes.FailedPrecondition,
		says: `target: a file system of type "tmpfs" is mounted there; unmount it`,
	},
	{name: "TargetSymlink", attributes: attach(onEth0), arrange: func(t *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		if err := os.Symlink(t.TempDir(), req.TargetPath); err != nil {
			t.Fatal(err)
		}
	}, code: codes.FailedPrecondition,
		says: `target: it is a symbolic link; remove it`,
	},
	{name: "TargetBelowSymlink", attributes: attach(onEth0), arrange: func(t *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		parent := filepath.Dir(req.TargetPath)
		if err := os.Rename(parent, parent+".real"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(parent+".real", parent); err != nil {
			t.Fatal(err)
		}
	}, code: codes.FailedPrecondition,
		says: `target: a directory above it is a symbolic link; name the directory that it leads to`,
	},
	{name: "TargetFile", attributes: attach(onEth0), arrange: func(t *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		if err := os.WriteFile(req.TargetPath, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}, code: codes.FailedPrecondition,
		says: `target: it is a file, not a directory; remove it`,
	},
	{name: "TargetNotEmpty", attributes: attach(onEth0), arrange: func(t *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		if err := os.MkdirAll(filepath.Join(req.TargetPath, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
	}, code: codes.FailedPrecondition,
		says: `target: the directory is not empty; remove what is in it`,
	},
	{name: "TargetParentMissing", attributes: attach(onEth0), arrange: func(t *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		if err := os.Remove(filepath.Dir(req.TargetPath)); err != nil {
			t.Fatal(err)
		}
	}, code: codes.FailedPrecondition,
		says: `target: the directory above it does not exist; create it`,
	},
}
