// SPDX-License-Identifier: Apache-2.0

package events

import (
	"bytes"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/e2e/hostile"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// policyRefusals are about who may use what.
var policyRefusals = []refusal{
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
}

// registryRefusals are about the registry.
var registryRefusals = []refusal{
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
	{name: "LinkLocalRealm", push: object(bpf.Count), registry: realm("http://169.254.169.254/token"), attributes: attach(onEth0), arrange: login("alice"), code: codes.Unauthenticated,
		says: `image $IMAGE: not authenticated: registry $REGISTRY: answer of its token server cannot be used: "bearer realm host \"169.254.169.254\" is 169.254.169.254, in blocked prefix 169.254.0.0/16"; check the registry`,
	},
	{name: "RepeatsCredentials", push: object(bpf.Count), registry: repeats, attributes: attach(onEth0), arrange: login("alice"), code: codes.Unauthenticated,
		says: `image $IMAGE: not authenticated: registry $REGISTRY: its answer repeats the credentials it was sent; check the registry`,
	},
	{name: "CachedForOthers", push: object(bpf.Hooks), attributes: attach(onTrace), arrange: cachedForAlice, code: codes.Unauthenticated,
		says: `image $IMAGE: cached for other credentials: not authenticated: registry $REGISTRY answered 401; check that the image exists and the credentials may pull it`,
	},
	{name: "CachedForOthersNever", push: object(bpf.Hooks), attributes: with(attach(onTrace), "pullPolicy", "Never"), arrange: func(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
		req.VolumeContext["pullPolicy"] = "IfNotPresent"
		cachedForAlice(t, n, req)
		req.VolumeContext["pullPolicy"] = "Never"
	}, code: codes.Unauthenticated,
		says: `image $IMAGE: not authenticated: it is in the cache for other credentials, and the pull policy is Never; pull it once with these`,
	},
	{name: "CachedForOthersUnavailable", push: object(bpf.Hooks), attributes: attach(onTrace), arrange: func(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
		cachedForAlice(t, n, req)
		n.registry.InterceptFor(t, imagetest.Status("", 500))
	}, code: codes.Unavailable,
		says: `image $IMAGE: cached for other credentials: unavailable: registry $REGISTRY answered 500; try again later`,
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
		n.registry.InterceptFor(t, imagetest.Drop(""))
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
}

// imageRefusals are about the image.
var imageRefusals = []refusal{
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
	{name: "CutZstd", push: layer(ocispec.MediaTypeImageLayerZstd, func(*testing.T) []byte { return []byte("\x28\xb5\x2f\xfd....") }), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: unsupported image: layer is not a whole archive`,
	},
	{name: "ZstdWindow", push: layer(ocispec.MediaTypeImageLayerZstd, func(*testing.T) []byte { return hostile.ZstdWindow() }), attributes: attach(onEth0), code: codes.InvalidArgument,
		says: `image $IMAGE: over the limit: layer needs more memory to unpack than it may; compress it by zstd without --long and --ultra`,
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
}

// signatureRefusals are about its signatures.
var signatureRefusals = []refusal{
	{name: "Unsigned", policy: "acme", push: object(bpf.Drop), attributes: attach("{program: drop, xdp: eth0}"), code: codes.PermissionDenied,
		says: `image $SIGNED: is not signed, and policy "acme" wants a signature; sign it with a key of the policy`,
	},
	{name: "WrongKey", policy: "acme", push: wrongKey, attributes: attach("{program: drop, xdp: eth0}"), code: codes.PermissionDenied,
		says: `image $SIGNED: no signature by policy "acme" (found 1: by another key); sign it with a key of the policy or ask an admin to add yours`,
	},
	{name: "Transplanted", policy: "acme", push: transplanted, attributes: attach("{program: drop, xdp: eth0}"), code: codes.PermissionDenied,
		says: `image $SIGNED: no signature by policy "acme" (found 1: for another image); sign it with a key of the policy or ask an admin to add yours`,
	},
}
