// SPDX-License-Identifier: Apache-2.0

package events

import (
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/e2e/eventdoc"
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

// with returns attributes and one more, which gives way to one that is there.
func with(attributes map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range attributes {
		out[k] = v
	}
	return out
}

// In the order in which a publish meets them.
var refusals = slices.Concat(
	attributeRefusals, requestRefusals, targetRefusals, policyRefusals, registryRefusals, imageRefusals,
	signatureRefusals, objectRefusals, allowRefusals, nodeRefusals,
)

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
				n.registry.InterceptFor(t, r.registry)
			}
			before := n.snapshot(t)
			n.wantEvent(t, req, n.publish(t, req), r.code, r.says)
			n.wantNothing(t, before, req)
		})
	}
}

// wantEvent checks what kubelet makes an event of. In says, $IMAGE is the image as the volume names it, $SIGNED the same
// by digest, $REGISTRY the registry, $ARCH this machine's architecture; eventdoc.Check has the rest.
func (n *node) wantEvent(t *testing.T, req *csi.NodePublishVolumeRequest, err error, code codes.Code, says string) {
	t.Helper()
	image := req.VolumeContext["image"]
	name := strings.TrimSuffix(image, ":v1")
	exact := strings.NewReplacer("$REGISTRY", n.Stack.Registry, "$IMAGE", image, "$SIGNED", name+"@"+n.digests[name].String(), "$ARCH", runtime.GOARCH).Replace(says)
	eventdoc.Check(t, err, code, exact, map[string]string{
		"the volume's id": req.VolumeId, "the pod's uid": req.VolumeContext["csi.storage.k8s.io/pod.uid"], "a path of the node": n.Dir,
	})
}
