// SPDX-License-Identifier: Apache-2.0

package events

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// refusal is one publish that must fail.
type refusal struct {
	name string
	// attributes are those of the volume. The image is count, or what push has made, unless they say.
	attributes map[string]string
	// push fills a repository, named after the case, whose images the policy admits; open where none is given.
	push   func(t *testing.T, n *node, r repository) digest.Digest
	policy string
	// registry misbehaves.
	registry imagetest.Hook
	// arrange does what else is needed, and may change the request.
	arrange func(t *testing.T, n *node, req *csi.NodePublishVolumeRequest)

	code codes.Code
	// says is the message, with what differs from run to run named; see wantEvent.
	says string
}

const (
	// count is the image of most cases: good and signed.
	count   = "$REGISTRY/acme/count:v1"
	onEth0  = "{program: count, xdp: {interface: eth0}}"
	onTrace = "{program: on_tracepoint, tracepoint: syscalls/sys_enter_getpgid}"
)

func attach(yaml string) map[string]string { return map[string]string{"attach": yaml} }

// numbered is a list of names that end in 0, 1, ...
func numbered(name string, n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint(name, i)
	}
	return strings.Join(names, ", ")
}

// with returns attributes and one more, which gives way to one that is there.
func with(attributes map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range attributes {
		out[k] = v
	}
	return out
}

// In the order in which a publish meets them.
var refusals = []refusal{
	// What the pod's specification says.
	{name: "UnknownKey", attributes: with(attach(onEth0), "imge", "x"), code: codes.InvalidArgument,
		says: `volumeAttributes: unknown key "imge"; did you mean "image"?`,
	},
	{name: "UnknownKeyFar", attributes: with(attach(onEth0), "color", "x"), code: codes.InvalidArgument,
		says: `volumeAttributes: unknown key "color"; known are image, attach, maps, variables, mapEntries, pullPolicy`,
	},
	{name: "MalformedYAML", attributes: attach("- program: ["), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: is not YAML: line 1: did not find expected node content`,
	},
	{name: "EmptyAttribute", attributes: attach(" "), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: is empty; leave the key out or write its value`,
	},
	{name: "NotText", attributes: attach("{program: \x00"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: is not text; write UTF-8 without NUL bytes`,
	},
	{name: "WrongHook", attributes: attach("{program: count, xpd: eth0}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: unknown key "xpd"; did you mean "xdp"?`,
	},
	{name: "WrongHookKey", attributes: attach("[{program: count, xdp: {interface: eth0, mod: auto}}]"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach[0].xdp: unknown key "mod"; did you mean "mode"?`,
	},
	{name: "NoHook", attributes: attach("{program: count}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: hook is missing; write one, like xdp: {interface: eth0}`,
	},
	{name: "PriorityOutOfRange", attributes: attach("{program: count, xdp: {interface: eth0, priority: 5000}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp.priority: 5000 is out of range; use 0 to 1000`,
	},
	{name: "SameProgramTwice", attributes: attach("[" + onEth0 + ", " + onEth0 + "]"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach[1]: program "count" is at this point already, by attach[0]; write one entry`,
	},
	{name: "Alias", attributes: attach("[&a " + onEth0 + ", *a]"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: line 1: has a YAML alias; write its value`,
	},
	{name: "MapTraversal", attributes: with(attach(onEth0), "maps", "../x"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: "../x" is not the name of a map; write it as in the object, with letters, digits and "_"`,
	},
	{name: "MapDot", attributes: with(attach(onEth0), "maps", "a.b"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: "a.b" is not the name of a map; write it as in the object, with letters, digits and "_"`,
	},
	{name: "DataSectionDot", attributes: with(attach(onEth0), "maps", ".rodata"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: ".rodata" is a data section; write it without the dot: "rodata"`,
	},
	{name: "MapAccess", attributes: with(attach(onEth0), "maps", "flows:w"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: map "flows": unknown access "w"; write "flows" or "flows:rw"`,
	},
	{name: "EntriesOutOfRange", attributes: with(attach(onEth0), "mapEntries", "flows: 0"), code: codes.InvalidArgument,
		says: `volumeAttributes: mapEntries.flows: 0 is out of range; use 1 to 4294967295`,
	},
	{name: "PullPolicy", attributes: with(attach(onEth0), "pullPolicy", "ifnotpresent"), code: codes.InvalidArgument,
		says: `volumeAttributes: pullPolicy: unknown value "ifnotpresent"; did you mean "IfNotPresent"?`,
	},
	{name: "UnknownVerdict", attributes: attach("{program: count, xdp: {interface: eth0, proceedOn: [accept]}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp.proceedOn: unknown verdict "accept"; known are aborted, drop, pass, tx, redirect, dispatcherReturn`,
	},
	{name: "UnknownSelector", attributes: attach("{program: count, xdp: '@wan'}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp: unknown selector "@wan"; the one there is is "@default-route"`,
	},
	{name: "SeveralDocuments", attributes: attach(onEth0 + "\n---\n" + onEth0), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: has several YAML documents; write one`,
	},
	{name: "TwoHooks", attributes: attach("{program: count, xdp: eth0, tracepoint: sched/sched_switch}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: has two hooks, xdp and tracepoint; write an entry for each`,
	},
	{name: "TwoRates", attributes: attach("{program: count, perfEvent: {event: cpu-clock, frequency: 1, period: 1}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.perfEvent: has both frequency and period; write one`,
	},
	{name: "Octal", attributes: attach("{program: count, xdp: {interface: eth0, priority: 0500}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp.priority: "0500" could be octal or decimal; write 0o... for octal, or no leading zero`,
	},
	{name: "UprobeWithoutSymbol", attributes: attach("{program: count, uprobe: /bin/sh}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.uprobe: "/bin/sh" has no symbol; write path:symbol, like /usr/lib/libc.so.6:malloc`,
	},
	{name: "TooManyInterfaces", attributes: attach("{program: count, xdp: {interface: [" + numbered("i", 65) + "]}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp.interface: names 65 interfaces; at most 64 are possible`,
	},
	{name: "MapTwice", attributes: with(attach(onEth0), "maps", "flows, flows"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: map "flows" is named twice; write it once`,
	},
	{name: "ListForString", attributes: attach("{program: count, xdp: [eth0]}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp: is a list; write "eth0", or a map`,
	},
	{name: "LongWhenQuoted", attributes: with(attach(onEth0), "variables", "x: ["+strings.Repeat(".,", 25000)+"]"), code: codes.InvalidArgument,
		says: `volumeAttributes: have 125082 bytes when written out; at most 65536 are possible`,
	},
	{name: "MiB", attributes: attach(strings.Repeat("x", 1<<20)), code: codes.InvalidArgument,
		says: `volumeAttributes: have 1048616 bytes; at most 65536 are possible`,
	},
	{name: "FiveMiB", attributes: attach(strings.Repeat("x", 5<<20)), code: codes.ResourceExhausted,
		says: `grpc: received message larger than max ($N vs. 4194304)`,
	},
	{name: "NoImage", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		delete(req.VolumeContext, "image")
	}, code: codes.InvalidArgument,
		says: `volumeAttributes: image: is missing; name a bytecode image, like ghcr.io/acme/count:v1`,
	},
	{name: "EmptyImage", attributes: map[string]string{"image": "", "attach": onEth0}, code: codes.InvalidArgument,
		says: `volumeAttributes: image: is empty; leave the key out or write its value`,
	},
	{name: "BadReference", attributes: map[string]string{"image": "ghcr.io/acme/../x", "attach": onEth0}, code: codes.InvalidArgument,
		says: `image "ghcr.io/acme/../x": bad image reference: repository "acme/../x" is not made of lower-case letters, digits and separators`,
	},
	{name: "UnsupportedHook", attributes: attach("{program: count, kprobe: do_unlinkat}"), code: codes.FailedPrecondition,
		says: `program "count": kprobe: not supported yet by this version; supported: xdp, tc, tracepoint, rawTracepoint, uprobe, uretprobe, cgroup, perfEvent`,
	},

	// What kubelet says.
	{name: "Block", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	}, code: codes.InvalidArgument,
		says: `volumeMode: Block: a bytecode volume is a directory; use Filesystem`,
	},
	{name: "FSType", attributes: attach(onEth0), arrange: capability(func(m *csi.VolumeCapability_MountVolume) { m.FsType = "ext4" }), code: codes.InvalidArgument,
		says: `fsType: "ext4": a bytecode volume has no file system type; leave it out`,
	},
	{name: "MountOptions", attributes: attach(onEth0), arrange: capability(func(m *csi.VolumeCapability_MountVolume) { m.MountFlags = []string{"ro"} }), code: codes.InvalidArgument,
		says: `mountOptions: not supported by a bytecode volume; leave them out`,
	},
	{name: "Group", attributes: attach(onEth0), arrange: capability(func(m *csi.VolumeCapability_MountVolume) { m.VolumeMountGroup = "wheel" }), code: codes.InvalidArgument,
		says: `volume mount group: "wheel": must be a group number from 0 to 4294967294`,
	},
	{name: "NoPodInfo", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		delete(req.VolumeContext, "csi.storage.k8s.io/serviceAccount.name")
	}, code: codes.InvalidArgument,
		says: `csi.storage.k8s.io/serviceAccount.name: missing; set podInfoOnMount: true in the CSIDriver object`,
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

	// What is at the target.
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

	// Who may use what.
	{name: "NoPolicy", attributes: map[string]string{"image": "$REGISTRY/other/x:v1", "attach": onEth0}, code: codes.PermissionDenied,
		says: `image $REGISTRY/other/x:v1: no policy covers it (the nearest, "acme", is for "$REGISTRY/acme/**"); an admin must add a BytecodePolicy whose images include "$REGISTRY/other/x"`,
	},
	{name: "NoPolicyNear", attributes: map[string]string{"image": "docker.io/other/x:v1", "attach": onEth0}, code: codes.PermissionDenied,
		says: `image docker.io/other/x:v1: no policy covers it; an admin must add a BytecodePolicy whose images include "docker.io/other/x"`,
	},
	{name: "OtherServiceAccount", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		req.VolumeContext["csi.storage.k8s.io/serviceAccount.name"] = "default"
	}, code: codes.PermissionDenied,
		says: `image $IMAGE: policy "acme" does not name subject "team/default"; ask an admin to add it to the policy's subjects`,
	},
	{name: "PolicyWithoutAuthorities", policy: "empty", push: object(bpf.Count), attributes: attach(onEth0), code: codes.PermissionDenied,
		says: `image $SIGNED: policy "empty" has no authorities and no "unsigned: true", so nothing satisfies it; ask an admin to add a key to the policy`,
	},
	{name: "HostNotAllowed", attributes: map[string]string{"image": "192.0.2.1/acme/x:v1", "attach": onEth0}, code: codes.PermissionDenied,
		says: `image 192.0.2.1/acme/x:v1: host not allowed: registry 192.0.2.1 is an IP address; use a name, or ask an admin to list it in --registries`,
	},

	// The registry.
	{name: "TagNotFound", attributes: map[string]string{"image": "$REGISTRY/open/none:v1", "attach": onEth0}, code: codes.NotFound,
		says: `image $IMAGE: not found: registry $REGISTRY answered 404; check repository and tag`,
	},
	{name: "NeverAndNotCached", attributes: map[string]string{"image": "$REGISTRY/open/none:v1", "attach": onEth0, "pullPolicy": "Never"}, code: codes.NotFound,
		says: `image $IMAGE: not in the cache, and the pull policy is Never; pull it once with another policy`,
	},
	{name: "HTTP401", push: object(bpf.Count), registry: imagetest.Status("", 401), attributes: attach(onEth0), code: codes.Unauthenticated,
		says: `image $IMAGE: not authenticated: registry $REGISTRY answered 401; check that the image exists and the credentials may pull it`,
	},
	{name: "HTTP403", push: object(bpf.Count), registry: imagetest.Status("", 403), attributes: attach(onEth0), code: codes.Unauthenticated,
		says: `image $IMAGE: not authenticated: registry $REGISTRY answered 403; check that the image exists and the credentials may pull it`,
	},
	{name: "TokenIsNonsense", push: object(bpf.Count), registry: nonsenseToken, attributes: attach(onEth0), code: codes.Unauthenticated,
		says: `image $IMAGE: not authenticated: registry $REGISTRY: answer of its token server cannot be used: "invalid character '<' looking for beginning of value"; check the registry`,
	},
	{name: "HTTP429", push: object(bpf.Count), registry: imagetest.Status("", 429), attributes: attach(onEth0), code: codes.Unavailable,
		says: `image $IMAGE: unavailable: registry $REGISTRY answered 429; try again later`,
	},
	{name: "HTTP500", push: object(bpf.Count), registry: imagetest.Status("", 500), attributes: attach(onEth0), code: codes.Unavailable,
		says: `image $IMAGE: unavailable: registry $REGISTRY answered 500; try again later`,
	},
	{name: "Dropped", push: object(bpf.Count), registry: imagetest.Drop(""), attributes: attach(onEth0), code: codes.Unavailable,
		says: `image $IMAGE: unavailable: registry $REGISTRY: answer was cut off; try again later`,
	},
	{name: "UnknownHost", attributes: map[string]string{"image": "registry.invalid/x:v1", "attach": onEth0}, code: codes.Unavailable,
		says: `image registry.invalid/x:v1: unavailable: registry registry.invalid: cannot look up the host name; check it`,
	},
	{name: "TruncatedBlob", push: object(bpf.Count), registry: imagetest.Truncate("/blobs/"), attributes: attach(onEth0), code: codes.Unavailable,
		says: `image $IMAGE: unavailable: registry $REGISTRY: answer was cut off; try again later`,
	},
	{name: "SignaturesUnavailable", policy: "acme", push: object(bpf.Count), registry: imagetest.Status(".sig", 500), attributes: attach(onEth0), code: codes.Unavailable,
		says: `image $SIGNED: signatures: unavailable: registry $REGISTRY answered 500; try again later`,
	},
	{name: "FlippedManifest", push: object(bpf.Count), registry: imagetest.Flip("/manifests/sha256:"), attributes: attach(onEth0), code: codes.DataLoss,
		says: `image $IMAGE: bytes differ from their digest: registry $REGISTRY sent a manifest that is not $SHA; push the image again`,
	},
	{name: "FlippedBlob", push: object(bpf.Count), registry: imagetest.Flip("/blobs/"), attributes: attach(onEth0), code: codes.DataLoss,
		says: `image $IMAGE: bytes differ from their digest: sent by registry $REGISTRY; push the image again`,
	},
	{name: "SpoiledCache", push: object(bpf.Hooks), attributes: attach(onTrace), arrange: func(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
		cached(t, n, req)
		spoil(t, n)
		n.registry.set(t, imagetest.Drop(""))
	}, code: codes.DataLoss,
		says: `image $IMAGE: bytes differ from their digest: $SHA in the cache, and it cannot be fetched again: unavailable: registry $REGISTRY: answer was cut off; try again later`,
	},
	{name: "SpoiledCacheNever", push: object(bpf.Hooks), attributes: attach(onTrace), arrange: func(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
		cached(t, n, req)
		spoil(t, n)
		req.VolumeContext["pullPolicy"] = "Never"
	}, code: codes.DataLoss,
		says: `image $IMAGE: bytes differ from their digest: $SHA in the cache; pull or build it again`,
	},

	{name: "LostCacheNever", push: object(bpf.Hooks), attributes: attach(onTrace), arrange: func(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
		cached(t, n, req)
		lose(t, n)
		req.VolumeContext["pullPolicy"] = "Never"
	}, code: codes.NotFound,
		says: `image $IMAGE: not in the cache: $SHA; pull or build it again`,
	},

	// The image.
	{name: "Bomb", push: layer(ocispec.MediaTypeImageLayerGzip, bomb), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: over the limit: objects have more than 33554432 bytes`,
	},
	{name: "HugeLayer", push: layer(ocispec.MediaTypeImageLayer, func(*testing.T) []byte { return make([]byte, 17<<20) }), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: over the limit: "application/vnd.oci.image.layer.v1.tar" claims 17825792 bytes, allowed are 16777216`,
	},
	{name: "TwoObjects", push: layer(ocispec.MediaTypeImageLayerGzip, twoObjects), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: ambiguous image: it has the objects "a.o" and "b.o"; build one image for each`,
	},
	{name: "X86", push: layer("application/vnd.bpfvol.object.v1+elf", executable), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: no BPF object: "prog.bpf.o" is an ELF file for EM_X86_64; build the image from the output of clang -target bpf -c`,
	},
	{name: "BigEndian", push: object(bpf.PassBigEndian), attributes: attach("{program: pass, xdp: eth0}"), code: codes.InvalidArgument,
		says: `image $IMAGE: wrong architecture: object "prog.bpf.o" has the byte order of other machines; build it with clang -target bpfel`,
	},
	{name: "EmptyLayer", push: layer(ocispec.MediaTypeImageLayer, func(*testing.T) []byte { return nil }), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: no BPF object; build the image from the output of clang -target bpf -c`,
	},
	{name: "NoObject", push: layer(ocispec.MediaTypeImageLayerGzip, archive(imagetest.File{Name: "README", Data: []byte("hello")})), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: no BPF object; build the image from the output of clang -target bpf -c`,
	},
	{name: "NotArchive", push: layer(ocispec.MediaTypeImageLayer, func(*testing.T) []byte { return bytes.Repeat([]byte("x"), 2048) }), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: no BPF object; build the image from the output of clang -target bpf -c`,
	},
	{name: "Zstd", push: layer(ocispec.MediaTypeImageLayerZstd, func(*testing.T) []byte { return []byte("\x28\xb5\x2f\xfd....") }), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: unsupported image: layer is compressed by zstd; compress it by gzip`,
	},
	{name: "OtherArchitecture", push: otherArch, attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: wrong architecture: no image for linux/$ARCH; it has: "linux/s390x"`,
	},
	{name: "OtherArchitectureAlone", push: otherArchAlone, attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: wrong architecture: it was built for linux/"s390x", this node is linux/$ARCH; build it for both`,
	},
	{name: "NoManifest", push: func(t *testing.T, _ *node, r repository) digest.Digest {
		return r.PutRaw(t, "v1", "application/vnd.docker.distribution.manifest.v1+json", []byte("{}")).Digest
	}, attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: unsupported image: media type "application/vnd.docker.distribution.manifest.v1+json"; push it as an OCI or Docker image`,
	},
	{name: "BrokenELF", push: object(func() []byte { return bpf.Count()[:1000] }), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `object: malformed ELF: EOF; compile it again with clang -target bpf`,
	},

	// Its signatures.
	{name: "Unsigned", policy: "acme", push: object(bpf.Drop), attributes: attach("{program: drop, xdp: eth0}"), code: codes.PermissionDenied,
		says: `image $SIGNED: is not signed, and policy "acme" wants a signature; sign it with a key of the policy`,
	},
	{name: "WrongKey", policy: "acme", push: wrongKey, attributes: attach("{program: drop, xdp: eth0}"), code: codes.PermissionDenied,
		says: `image $SIGNED: no signature by policy "acme" (found 1: by another key); sign it with a key of the policy or ask an admin to add yours`,
	},
	{name: "Transplanted", policy: "acme", push: transplanted, attributes: attach("{program: drop, xdp: eth0}"), code: codes.PermissionDenied,
		says: `image $SIGNED: no signature by policy "acme" (found 1: for another image); sign it with a key of the policy or ask an admin to add yours`,
	},

	// Its object, and what the volume asks of it.
	{name: "ProgramNotInImage", attributes: attach("{program: coutn, xdp: eth0}"), code: codes.NotFound,
		says: `program "coutn" not in image; it has: count, count_out, on_exec; did you mean "count"?`,
	},
	{name: "MapNotInImage", attributes: with(attach(onEth0), "maps", "flow"), code: codes.NotFound,
		says: `map "flow" not in image; it has: events, execs, flows, rodata, totals; did you mean "flows"?`,
	},
	{name: "MapOfNone", push: object(bpf.Pass), attributes: with(attach("{program: pass, xdp: eth0}"), "maps", "flows"), code: codes.NotFound,
		says: `map "flows" not in image; it has none`,
	},
	{name: "VariableOfNone", push: object(bpf.Pass), attributes: with(attach("{program: pass, xdp: eth0}"), "variables", "x: 1"), code: codes.InvalidArgument,
		says: `variable "x" not in image; it has none`,
	},
	{name: "EntriesOfNoMap", attributes: with(attach(onEth0), "mapEntries", "flow: 1"), code: codes.NotFound,
		says: `map "flow" not in image; it has: events, execs, flows, totals; did you mean "flows"?`,
	},
	{name: "VariableNotInImage", attributes: with(attach(onEth0), "variables", "samplerate: 1"), code: codes.InvalidArgument,
		says: `variable "samplerate" not in image; it has: sample_rate; did you mean "sample_rate"?`,
	},
	{name: "VariableDoesNotFit", attributes: with(attach(onEth0), "variables", "sample_rate: many"), code: codes.InvalidArgument,
		says: `variable "sample_rate": "many" given; it is an integer (__u32)`,
	},
	{name: "RingSize", attributes: with(with(attach(onEth0), "maps", "events"), "mapEntries", "events: 1000"), code: codes.InvalidArgument,
		says: `map "events": a ring buffer of 1000 bytes; the size must be a power of two and at least $N: set mapEntries`,
	},
	{name: "HookOfAnotherType", attributes: attach("{program: count_out, xdp: eth0}"), code: codes.InvalidArgument,
		says: `program "count_out": hook xdp does not take programs of section "tc"; attach it as {program: count_out, tc: {interface: eth0, direction: ingress}}`,
	},
	{name: "AttachLeftOut", code: codes.InvalidArgument,
		says: `program "count": section "xdp" needs an interface; write attach: [{program: count, xdp: {interface: eth0}}], with an entry for each program that you want`,
	},

	// What the policy allows of that.
	{name: "HookNotAllowed", policy: "narrow", push: object(bpf.Hooks), attributes: attach("{program: on_ingress, cgroup: /}"), code: codes.PermissionDenied,
		says: `image $SIGNED: policy "narrow" does not allow hook "cgroup" for program "on_ingress" (it allows xdp, tc, tracepoint); change the volume's attributes or ask an admin to widen the policy`,
	},
	{name: "InterfaceNotAllowed", policy: "narrow", push: object(bpf.Pass), attributes: attach("{program: pass, xdp: {interface: [eth0, eth1]}}"), code: codes.PermissionDenied,
		says: `image $SIGNED: policy "narrow" does not allow interface "eth1" for program "pass" (it allows eth0); change the volume's attributes or ask an admin to widen the policy`,
	},
	{name: "PriorityNotAllowed", policy: "narrow", push: object(bpf.Pass), attributes: attach("{program: pass, xdp: {interface: eth0, priority: 50}}"), code: codes.PermissionDenied,
		says: `image $SIGNED: policy "narrow" does not allow priority 50 for program "pass" (it allows 100 to 900); change the volume's attributes or ask an admin to widen the policy`,
	},
	{name: "MapBytesNotAllowed", policy: "narrow", push: object(bpf.Count), attributes: with(attach(onEth0), "mapEntries", "flows: 1000000"), code: codes.PermissionDenied,
		says: `image $SIGNED: policy "narrow" does not allow $N bytes of maps (it allows 1048576); change the volume's attributes or ask an admin to widen the policy`,
	},
	{name: "HelperNotAllowed", policy: "narrow", push: object(bpf.Count), attributes: attach("{program: on_exec, tracepoint: syscalls/sys_enter_execve}"), code: codes.PermissionDenied,
		says: `image $SIGNED: policy "narrow" does not allow helper "bpf_get_current_comm", which program "on_exec" calls; change the volume's attributes or ask an admin to widen the policy`,
	},
	{name: "WritableMapNotAllowed", attributes: with(attach(onEth0), "maps", "flows:rw"), code: codes.PermissionDenied,
		says: `image $SIGNED: policy "acme" does not allow map "flows" as rw (it allows none); change the volume's attributes or ask an admin to widen the policy`,
	},

	// The node.
	{name: "NoInterface", attributes: attach("{program: count, xdp: et0}"), code: codes.FailedPrecondition,
		says: `interface "et0" does not exist; did you mean "eth0"?; there are: eth0, eth1, lo`,
	},
	{name: "NoInterfaceNear", attributes: attach("{program: count, xdp: wlp0s20f3}"), code: codes.FailedPrecondition,
		says: `interface "wlp0s20f3" does not exist; there are: eth0, eth1, lo`,
	},
	{name: "NoDefaultRoute", attributes: attach("{program: count, xdp: '@default-route'}"), code: codes.FailedPrecondition,
		says: `interface @default-route: there is no default route, neither IPv4 nor IPv6; name the interface; there are: eth0, eth1, lo`,
	},
	{name: "Foreign", attributes: attach(onEth0), arrange: foreign, code: codes.FailedPrecondition,
		says: `program "count": xdp eth0: program "firewall" (id $N) that is not bpfvol's runs there; detach it first: ip link set dev eth0 xdp off, or end what attached it`,
	},
	{name: "SecondMember", attributes: attach(onEth0), arrange: occupied, code: codes.ResourceExhausted,
		says: `program "count": xdp eth0: program "count" runs there already, and this version attaches one program per hook; use another interface or remove that volume; it belongs to pod team/app-0`,
	},
	{name: "NoNativeXDP", attributes: attach("{program: count, xdp: {interface: lo, mode: native}}"), code: codes.FailedPrecondition,
		says: `program "count": xdp lo: native mode: not supported by the interface's driver; use mode auto or generic`,
	},
	{name: "NoTracepoint", push: object(bpf.Hooks), attributes: attach("{program: on_tracepoint, tracepoint: syscalls/sys_enter_getpgidd}"), code: codes.FailedPrecondition,
		says: `program "on_tracepoint": tracepoint "syscalls/sys_enter_getpgidd" does not exist; did you mean "syscalls/sys_enter_getpgid"?`,
	},
	{name: "NoTracepointGroup", push: object(bpf.Hooks), attributes: attach("{program: on_tracepoint, tracepoint: sycalls/sys_enter_getpgid}"), code: codes.FailedPrecondition,
		says: `program "on_tracepoint": tracepoint group "sycalls" does not exist; did you mean "syscalls"?`,
	},
	{name: "NoRawTracepoint", push: object(bpf.Hooks), attributes: attach("{program: on_raw_tracepoint, rawTracepoint: sys_entre}"), code: codes.FailedPrecondition,
		says: `program "on_raw_tracepoint": raw tracepoint "sys_entre" does not exist; did you mean "sys_enter"?`,
	},
	{name: "NoBinary", push: object(bpf.Hooks), attributes: attach("{program: on_uprobe, uprobe: '/usr/bin/no-such:main'}"), code: codes.FailedPrecondition,
		says: `program "on_uprobe": binary "/usr/bin/no-such" does not exist on this node`,
	},
	{name: "NoSymbol", push: object(bpf.Hooks), attributes: attach("{program: on_uprobe, uprobe: '/proc/self/exe:main.mainn'}"), code: codes.FailedPrecondition,
		says: `program "on_uprobe": symbol "main.mainn" does not exist; did you mean "main.main"?`,
	},
	{name: "NoCgroup", push: object(bpf.Hooks), attributes: attach("{program: on_ingress, cgroup: no/such}"), code: codes.FailedPrecondition,
		says: `program "on_ingress": cgroup "no/such" does not exist on this node`,
	},
	{name: "NoPerfEvent", push: object(bpf.Hooks), attributes: attach("{program: on_perf_event, perfEvent: cpu-clocks}"), code: codes.FailedPrecondition,
		says: `program "on_perf_event": event "cpu-clocks" does not exist; did you mean "cpu-clock"?`,
	},
	{name: "BinaryIsDirectory", push: object(bpf.Hooks), attributes: attach("{program: on_uprobe, uprobe: '/etc:main'}"), code: codes.FailedPrecondition,
		says: `program "on_uprobe": binary "/etc": not a regular file; name an executable or a shared library`,
	},
	{name: "BinaryIsText", push: object(bpf.Hooks), attributes: attach("{program: on_uprobe, uprobe: '/etc/passwd:main'}"), code: codes.FailedPrecondition,
		says: `program "on_uprobe": binary "/etc/passwd": $WORDS; name an executable or a shared library`,
	},
	{name: "CgroupElsewhere", push: object(bpf.Hooks), attributes: attach("{program: on_ingress, cgroup: /etc}"), code: codes.FailedPrecondition,
		says: `program "on_ingress": cgroup "/etc" does not exist; cgroup2 is mounted at: $WORDS`,
	},
	{name: "NoPerfEventNear", push: object(bpf.Hooks), attributes: attach("{program: on_perf_event, perfEvent: xyzzy-xyzzy}"), code: codes.FailedPrecondition,
		says: `program "on_perf_event": event "xyzzy-xyzzy" does not exist; there are: $WORDS`,
	},
	{name: "NoCPU", push: object(bpf.Hooks), attributes: attach("{program: on_perf_event, perfEvent: {event: cpu-clock, cpu: 4095}}"), code: codes.FailedPrecondition,
		says: `program "on_perf_event": event "cpu-clock": CPU 4095 is not online; online are $WORDS`,
	},
	{name: "SampleRate", push: object(bpf.Hooks), attributes: attach("{program: on_perf_event, perfEvent: {event: cpu-clock, frequency: 100000000}}"), code: codes.FailedPrecondition,
		says: `program "on_perf_event": event "cpu-clock": frequency 100000000 is more than the node takes (kernel.perf_event_max_sample_rate); choose a lower one`,
	},
	{name: "Verifier", push: object(bpf.Rejected), attributes: attach("{program: rejected, xdp: eth0}"), code: codes.InvalidArgument,
		says: `program "rejected": rejected by the kernel's verifier: "$WORDS" at "return sum + *(__u8 *)(long)ctx->data;$WORDS"; the verifier's own log is in bpfvol's`,
	},
	{name: "MapTooLarge", attributes: with(attach(onEth0), "mapEntries", "flows: 4294967295"), code: codes.ResourceExhausted,
		says: `load: map flows: map create: over the kernel's limit; ask for less, for example by mapEntries`,
	},
	{name: "NoMemory", push: object(bpf.Hooks), attributes: with(attach(onTrace), "mapEntries", "hits: 4294967295"), code: codes.ResourceExhausted,
		says: `load: map hits: map create: cannot allocate memory; ask for less, for example by mapEntries`,
	},
	{name: "WritableMap", push: object(bpf.Count), attributes: with(attach(onEth0), "maps", "flows:rw"), code: codes.FailedPrecondition,
		says: `map "flows": access rw: not supported yet by this version; show it read-only`,
	},
	{name: "DiskFull", attributes: attach(onEth0), arrange: full, code: codes.ResourceExhausted,
		says: `record: no space left on device; look at the node plugin's state directory`,
	},
}

// Every refusal has its code and its words, and leaves nothing.
func TestRefusals(t *testing.T) {
	n := newNode(t)
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			attributes := with(r.attributes, "image", count)
			if r.push != nil {
				policy := "open"
				if r.policy != "" {
					policy = r.policy
				}
				repo := repository{host: n.Stack.Registry, name: policy + "/" + strings.ToLower(r.name)}
				repo.Repository = imagetest.In(repo.host, repo.name)
				image := repo.host + "/" + repo.name
				n.digests[image] = r.push(t, n, repo)
				attributes["image"] = image + ":v1"
			}
			req := n.request(t, attributes)
			if r.arrange != nil {
				r.arrange(t, n, req)
			}
			if r.registry != nil {
				n.registry.set(t, r.registry)
			}
			before := n.snapshot(t)
			n.wantEvent(t, req, n.publish(t, req), r.code, r.says)
			n.wantNothing(t, before, req)
		})
	}
}

// wantEvent checks what kubelet makes an event of. In says, $IMAGE is the image as the volume names it, $SIGNED the same
// by digest, $REGISTRY the registry, $ARCH this machine's architecture, $SHA any digest, $N any number
// and $WORDS the kernel's own.
func (n *node) wantEvent(t *testing.T, req *csi.NodePublishVolumeRequest, err error, code codes.Code, says string) {
	t.Helper()
	got := status.Convert(err)
	if got.Code() != code {
		t.Errorf("code is %v, want %v", got.Code(), code)
	}
	image := req.VolumeContext["image"]
	name := strings.TrimSuffix(image, ":v1")
	exact := strings.NewReplacer("$REGISTRY", n.Stack.Registry, "$IMAGE", image, "$SIGNED", name+"@"+n.digests[name].String(), "$ARCH", runtime.GOARCH).Replace(says)
	pattern := strings.NewReplacer(`\$SHA`, `sha256:[0-9a-f]{64}`, `\$N`, `[0-9]+`, `\$WORDS`, `.+`).Replace(regexp.QuoteMeta(exact))
	if !regexp.MustCompile("^" + pattern + "$").MatchString(got.Message()) {
		t.Errorf("the message is\n\t%s\nwant\n\t%s", got.Message(), exact)
	}
	for what, part := range map[string]string{
		"the volume's id": req.VolumeId, "the pod's uid": req.VolumeContext["csi.storage.k8s.io/pod.uid"], "a path of the node": n.Dir,
	} {
		if part != "" && strings.Contains(got.Message(), part) {
			t.Errorf("the message has %s in it: %s", what, got.Message())
		}
	}
}
