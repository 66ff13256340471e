// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/e2e/eventdoc"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/kernelstate"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// node is a node with a registry of one kind.
type node struct {
	*nodetest.Node
	imagetest.Gate // before the registry
	kind           string
	referrers      bool
}

// newNode starts a node that ends with the test. Its policies are those of the table.
func newNode(t *testing.T, kind registryKind) *node {
	t.Helper()
	n := &node{kind: kind.name, referrers: kind.referrers}
	before := func(registry http.Handler) http.Handler { return slowly(n.Before(registry)) }
	if kind.start != nil {
		registry := kind.start(t)
		before = func(http.Handler) http.Handler { return slowly(n.Before(registry)) }
	}
	n.Node = nodetest.Start(t, nodetest.Options{Registry: before, Policies: func(registry string) string {
		return policyFile(t, registry, policies(t))
	}})
	return n
}

// policyFile is policies as a file. A policy is for the repositories that begin with its name, and for every service
// account of the table's pods, unless it says otherwise.
func policyFile(t testing.TB, registry string, policies map[string]v1alpha1.BytecodePolicySpec) string {
	t.Helper()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(policies)) {
		spec := policies[name]
		if spec.Images == nil {
			spec.Images = []string{"$REGISTRY/" + name + "/**"}
		}
		if spec.Subjects == nil {
			spec.Subjects = []string{"e2e/*"}
		}
		raw, err := json.Marshal(map[string]any{"apiVersion": v1alpha1.APIVersion, "kind": v1alpha1.Kind, "metadata": map[string]any{"name": name}, "spec": spec})
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("---\n" + strings.ReplaceAll(string(raw), "$REGISTRY", registry) + "\n")
	}
	return b.String()
}

// repository is where a case pushes its image.
type repository struct {
	imagetest.Repository
	n    *node
	name string
}

func (n *node) repository(name string) repository {
	return repository{imagetest.In(n.Registry, name), n, name}
}

// object is a good object whose bytes are of this repository and tag alone, so that no other case has brought them into
// the cache. Its program on_tracepoint counts calls of getpgid(2) in the map hits.
func (r repository) object(tag string) []byte { return append(bpf.Hooks(), r.name+tag...) }

// push pushes a good image.
func (r repository) push(t *testing.T, tag string, form ...imagetest.Format) digest.Digest {
	t.Helper()
	return imagetest.PushImage(t, r.n.Registry, r.name, tag, r.object(tag), form...)
}

// sign signs an image of the repository.
func (r repository) sign(t *testing.T, k keyPair, d digest.Digest, f image.Format) {
	t.Helper()
	r.attach(t, d, r.signature(t, k, d, f))
}

func (r repository) signature(t *testing.T, k keyPair, d digest.Digest, f image.Format) image.Signature {
	t.Helper()
	s, err := cosign.Sign(t.Context(), k.private, nil, d, r.reference(t, d), f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r repository) attach(t *testing.T, d digest.Digest, s image.Signature) {
	t.Helper()
	if err := imagetest.Store(t, r.n.Registry).AttachSignature(t.Context(), r.reference(t, d), s); err != nil {
		t.Fatal(err)
	}
}

func (r repository) reference(t *testing.T, d digest.Digest) image.Reference {
	return imagetest.Reference(t, r.n.Registry+"/"+r.name+"@"+d.String())
}

// onGetpgid attaches the program that counts.
const onGetpgid = "{program: on_tracepoint, tracepoint: syscalls/sys_enter_getpgid}"

// volume is a volume of a new pod that names an image: ":v1" or "@sha256:...", for example.
func (r repository) volume(reference string, attributes map[string]string) *nodetest.Volume {
	all := map[string]string{"image": r.n.Registry + "/" + r.name + reference, "attach": onGetpgid}
	maps.Copy(all, attributes)
	return r.n.New(all)
}

// snapshot is what exists on the node before a call.
func (n *node) snapshot(t *testing.T) kernelstate.Snapshot {
	t.Helper()
	s, err := kernelstate.Take(n.kept()...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// kept are the directories in which the daemon keeps what belongs to a volume. kubelet's own it may not look into
// while it may call again.
func (n *node) kept() []string {
	return slices.DeleteFunc(n.Kept(), func(dir string) bool { return dir == n.KubeletDir() })
}

// wantNothing fails if anything exists that did not before: program, link, map, mount, pin, record, lock.
func (n *node) wantNothing(t *testing.T, before kernelstate.Snapshot) {
	t.Helper()
	left, err := kernelstate.Leftovers(t.Context(), before, n.kept()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range left {
		t.Error("left behind:", what)
	}
}

// wantRuns sets the volume up and sees its program run, as the image with this digest. It goes with the test, or by
// TearDown.
func (n *node) wantRuns(t *testing.T, v *nodetest.Volume, d digest.Digest) {
	t.Helper()
	if err := v.SetUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.TearDown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	var before, after int
	v.Value(t, "hits", "0", &before)
	if _, err := unix.Getpgid(0); err != nil {
		t.Fatal(err)
	}
	if v.Value(t, "hits", "0", &after); after <= before {
		t.Errorf("the program does not run: hits went from %d to %d", before, after)
	}
	var says struct {
		Image struct{ Digest digest.Digest }
	}
	raw, err := os.ReadFile(filepath.Join(v.Target, "volume.json"))
	if err == nil {
		err = json.Unmarshal(raw, &says)
	}
	if err != nil || says.Image.Digest != d {
		t.Errorf("volume.json says %s, %v; want image %s", raw, err, d)
	}
}

// wantRefusal fails unless the volume cannot be set up, for this reason, and nothing comes of it. In says, $IMAGE is
// the image as the volume names it, $SIGNED the same by digest, $REGISTRY the registry; eventdoc.Check has the rest.
func (n *node) wantRefusal(t *testing.T, v *nodetest.Volume, r repository, d digest.Digest, code codes.Code, says string) {
	t.Helper()
	before := n.snapshot(t)
	err := v.SetUp(t.Context())
	var refused *kubelet.MountError
	if !errors.As(err, &refused) {
		t.Errorf("got %v, want %v: %s", err, code, says)
	} else {
		says = strings.NewReplacer("$IMAGE", v.Image(), "$SIGNED", n.Registry+"/"+r.name+"@"+d.String(), "$REGISTRY", n.Registry).Replace(says)
		eventdoc.Check(t, refused.Status.Err(), code, says, map[string]string{"a path of the node": n.Dir, "the pod's uid": "00000000-0000-4000"})
	}
	n.wantNothing(t, before)
	// kubelet keeps a volume that may come up later until its pod goes.
	if err := v.TearDown(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}
