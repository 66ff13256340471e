// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2/ktesting"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

func TestMain(m *testing.M) { bpftest.Main(m) }

// onGetpgid counts calls of getpgid(2), which nothing on the machine calls by itself, at index 0 of the map hits.
const onGetpgid = "{program: on_tracepoint, tracepoint: syscalls/sys_enter_getpgid}"

// fixture is an engine with everything around it real: registry, signatures, policy, kernel.
type fixture struct {
	*Engine
	ctx      context.Context // logs to the test
	opts     Options
	registry *imagetest.Server
	key      []byte // private
	public   []byte // of key
	pods     string // TargetRoot
	volumes  int
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	bpftest.Root(t)
	bpftest.NothingLeft(t)
	dir := t.TempDir()
	_, ctx := ktesting.NewTestContext(t)
	f := &fixture{ctx: ctx, registry: imagetest.Start(t), pods: filepath.Join(dir, "pods")}
	if err := os.Mkdir(f.pods, 0o755); err != nil {
		t.Fatal(err)
	}
	private, public, err := cosign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	f.key = private
	f.public = public
	f.opts = Options{
		StateDir:   filepath.Join(dir, "state"),
		BPFFSDir:   filepath.Join(bpftest.BPFFS(t), "bpfvol"),
		TargetRoot: f.pods,
		Images:     imagetest.Store(t, f.registry.Host),
		Policies:   f.policy(t, public, "hooks: ["+strings.Join(kinds(), ", ")+"], maxMapBytes: 1Pi, writableMaps: [flows, hits]"),
	}
	tmpfs(t, f.opts.StateDir)
	f.restart(t)
	return f
}

// policy is one for what the key signed in acme/, with what it allows.
func (f *fixture) policy(t testing.TB, public []byte, allow string) verify.Static {
	t.Helper()
	text := `
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: acme}
spec:
  images: ["` + f.registry.Host + `/acme/*"]
  authorities:
  - key:
      data: |
        ` + strings.ReplaceAll(strings.TrimSpace(string(public)), "\n", "\n        ") + `
  allow: {` + allow + `}
  subjects: [team/app]
`
	policies, err := verify.ParsePolicies([]byte(text), "acme.yaml", cosign.Compile)
	if err != nil {
		t.Fatal(err)
	}
	return policies
}

// kinds are all hooks.
func kinds() []string {
	var all []string
	for _, k := range volume.Kinds {
		all = append(all, string(k))
	}
	return all
}

// tmpfs makes dir what it is in production: a file system that a reboot clears.
func tmpfs(t testing.TB, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// restart is what a new daemon does: it opens the directories and recovers.
func (f *fixture) restart(t testing.TB) {
	t.Helper()
	engine, err := Open(f.opts)
	if err != nil {
		t.Fatal(err)
	}
	f.Engine = engine
	if err := f.Recover(f.ctx); err != nil {
		t.Fatal(err)
	}
}

// push pushes an image without a signature and returns its reference.
func (f *fixture) push(t testing.TB, name string, elf []byte, form ...imagetest.Format) image.Reference {
	t.Helper()
	d := imagetest.PushImage(t, f.registry.Host, "acme/"+name, "v1", elf, form...)
	ref := imagetest.Reference(t, f.registry.Host+"/acme/"+name+":v1")
	ref.Digest = d
	return ref
}

// sign signs what ref names with the key of the policy.
func (f *fixture) sign(t testing.TB, ref image.Reference) string {
	t.Helper()
	sig, err := cosign.Sign(t.Context(), f.key, nil, ref.Digest, ref, image.FormatBundle)
	if err != nil {
		t.Fatal(err)
	}
	if err := imagetest.Store(t, f.registry.Host).AttachSignature(t.Context(), ref, sig); err != nil {
		t.Fatal(err)
	}
	ref.Digest = ""
	return ref.String()
}

// signed pushes and signs.
func (f *fixture) signed(t testing.TB, name string, elf []byte) string {
	t.Helper()
	return f.sign(t, f.push(t, name, elf))
}

// request asks for a new volume of a new pod.
func (f *fixture) request(t testing.TB, image, attach string) Request {
	t.Helper()
	f.volumes++
	uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", f.volumes)
	parent := filepath.Join(f.pods, uid, "volumes", "kubernetes.io~csi", "bpf")
	if err := os.MkdirAll(parent, 0o750); err != nil {
		t.Fatal(err)
	}
	return Request{
		VolumeID:   "csi-" + uid,
		Target:     filepath.Join(parent, "mount"),
		Attributes: map[string]string{"image": image, "attach": attach},
		Subject:    verify.Subject{Namespace: "team", ServiceAccount: "app"},
		Pod:        Pod{Namespace: "team", Name: "pod", UID: uid, ServiceAccount: "app"},
	}
}

// publish publishes and takes the volume away with the test.
func (f *fixture) publish(t testing.TB, req Request) {
	t.Helper()
	f.published(t, req, f.Publish(f.ctx, req))
}

// publishIn publishes from a network namespace.
func (f *fixture) publishIn(t testing.TB, ns *bpftest.NetNS, req Request) {
	t.Helper()
	f.published(t, req, ns.Do(func() error { return f.Publish(f.ctx, req) }))
}

func (f *fixture) published(t testing.TB, req Request, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Unpublish(context.WithoutCancel(f.ctx), req.VolumeID, req.Target); err != nil {
			t.Error(err)
		}
	})
}

// hits is element 0 of the map hits as the pod reads it.
func hits(t testing.TB, target string) uint64 {
	t.Helper()
	return allHits(t, target)[0]
}

// allHits is the array hits as the pod reads it.
func allHits(t testing.TB, target string) []uint64 {
	t.Helper()
	file, err := os.Open(filepath.Join(target, "json", "hits"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var all []uint64
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var line struct{ Key, Value uint64 }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("json/hits: %q: %v", lines.Text(), err)
		}
		all = append(all, line.Value)
	}
	if len(all) == 0 {
		t.Fatal("json/hits is empty")
	}
	return all
}

func getpgid(t testing.TB, times int) {
	t.Helper()
	for range times {
		if _, err := unix.Getpgid(0); err != nil {
			t.Fatal(err)
		}
	}
}

// wantCounted fails unless the volume's program counts that many calls of getpgid(2), each once.
func wantCounted(t testing.TB, target string, calls int) {
	t.Helper()
	before := hits(t, target)
	getpgid(t, calls)
	if got := hits(t, target) - before; got != uint64(calls) {
		t.Errorf("the map counted %d calls, want %d", got, calls)
	}
}

// wantNothing fails if anything of req is left: target, record, pins. The fixture's end checks the kernel.
func (f *fixture) wantNothing(t testing.TB, req Request) {
	t.Helper()
	if _, err := os.Lstat(req.Target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("target is still there: %v", err)
	}
	for _, dir := range []string{f.opts.StateDir, f.opts.BPFFSDir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				t.Errorf("left behind: %s", strings.TrimPrefix(path, dir))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func hooks() []byte { return bpf.Hooks() }
