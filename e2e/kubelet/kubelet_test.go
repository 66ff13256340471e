// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/csi"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
)

// fakeEngine makes targets and remembers the calls.
type fakeEngine struct {
	err       error // of Publish
	mount     bool  // leave a tmpfs on the target, whatever else happens
	published []node.Request
	gone      []string
}

func (e *fakeEngine) Publish(_ context.Context, req node.Request) error {
	e.published = append(e.published, req)
	if e.mount {
		if err := os.Mkdir(req.Target, 0o755); err != nil {
			return err
		}
		return errors.Join(e.err, unix.Mount("test", req.Target, "tmpfs", 0, ""))
	}
	if e.err != nil {
		return e.err
	}
	return os.Mkdir(req.Target, 0o755)
}

func (e *fakeEngine) Unpublish(_ context.Context, id, target string) error {
	e.gone = append(e.gone, id)
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) && !e.mount {
		return err
	}
	return nil
}

func (e *fakeEngine) Stats(context.Context, string, string) (int, error) { return 0, nil }

func (e *fakeEngine) Health(context.Context, string, string) (node.Health, error) {
	return node.Health{Healthy: true}, nil
}

// connect starts a driver with engine and a kubelet that calls it.
func connect(t *testing.T, engine csi.Engine) (k *Kubelet, dir string) {
	t.Helper()
	dir = t.TempDir()
	server, err := csi.New(csi.Options{Driver: "csi.bpfvol.io", NodeID: "n", Engine: engine, PodsDir: filepath.Join(dir, "pods")})
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "unix://" + filepath.Join(t.TempDir(), "csi.sock")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, endpoint) }()
	k, err = Connect(t.Context(), endpoint, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return k, dir
}

func testPod() Pod {
	group := int64(2000)
	return Pod{Namespace: "shop", Name: "web-0", UID: "0b3f", ServiceAccount: "web", FSGroup: &group}
}

// files lists what is below dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var got []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			got = append(got, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestSetUpAndTearDown(t *testing.T) {
	engine := &fakeEngine{}
	k, dir := connect(t, engine)
	pod := testPod()
	volume := Volume{Name: "bpf", Attributes: map[string]string{
		"image": "ghcr.io/acme/count:v1",
		// A user can't say who he is.
		"csi.storage.k8s.io/serviceAccount.name": "admin",
	}}
	target, err := k.SetUp(t.Context(), pod, volume)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "pods/0b3f/volumes/kubernetes.io~csi/bpf/mount"); target != want {
		t.Errorf("target %s, want %s", target, want)
	}
	// printf 0b3fbpf | sha256sum
	const id = "csi-394e635765f7eba65406dbc7469424685efb2f204f201045e98eb546d00e08d4"
	got := engine.published[0]
	if got.Subject.ServiceAccount != "web" || got.Group == nil || *got.Group != 2000 || got.VolumeID != id {
		t.Errorf("the driver got %+v", got)
	}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(target), "vol_data.json"))
	if err != nil || !strings.Contains(string(data), `"volumeHandle":"`+got.VolumeID+`"`) {
		t.Errorf("vol_data.json: %s, %v", data, err)
	}
	if err := k.TearDown(t.Context(), pod, "bpf"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{got.VolumeID}, engine.gone); diff != "" {
		t.Errorf("unpublished: %s", diff)
	}
	if diff := cmp.Diff([]string{"pods"}, files(t, dir)); diff != "" {
		t.Errorf("left: %s", diff)
	}
}

func TestFinalErrorsForgetTheVolume(t *testing.T) {
	for _, c := range []struct {
		name  string
		err   error
		event string
		final bool
	}{
		{"final", image.ErrNotFound, `MountVolume.SetUp failed for volume "bpf" : rpc error: code = NotFound desc = not found`, true},
		{"not final", image.ErrPulling, `MountVolume.SetUp failed for volume "bpf" : rpc error: code = Aborted desc = pull still running`, false},
		{"no memory", syscall.ENOMEM, `MountVolume.SetUp failed for volume "bpf" : rpc error: code = ResourceExhausted desc = cannot allocate memory`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			engine := &fakeEngine{err: c.err}
			k, dir := connect(t, engine)
			_, err := k.SetUp(t.Context(), testPod(), Volume{Name: "bpf"})
			var failed *MountError
			if !errors.As(err, &failed) || failed.Error() != c.event || failed.Final() != c.final {
				t.Fatalf("got %v, want %q", err, c.event)
			}
			forgotten := len(files(t, dir)) == 1 // pods
			if forgotten != c.final {
				t.Errorf("forgotten: %v, want %v; there is %v", forgotten, c.final, files(t, dir))
			}
			if err := k.TearDown(t.Context(), testPod(), "bpf"); err != nil {
				t.Error(err)
			}
			if called := len(engine.gone) == 1; called == c.final {
				t.Errorf("NodeUnpublishVolume called: %v, want %v", called, !c.final)
			}
			if diff := cmp.Diff([]string{"pods"}, files(t, dir)); diff != "" {
				t.Errorf("left: %s", diff)
			}
		})
	}
}

func TestTearDownKeepsWhatIsMounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mount(2) needs root")
	}
	k, _ := connect(t, &fakeEngine{mount: true})
	target, err := k.SetUp(t.Context(), testPod(), Volume{Name: "bpf"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(target, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.TearDown(t.Context(), testPod(), "bpf"); err == nil || !strings.Contains(err.Error(), "left a mount") {
		t.Errorf("TearDown = %v, want a complaint about the mount", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

func TestTearDownOfUnknownVolumeCallsNobody(t *testing.T) {
	engine := &fakeEngine{}
	k, _ := connect(t, engine)
	if err := k.TearDown(t.Context(), testPod(), "bpf"); err != nil || len(engine.gone) != 0 {
		t.Errorf("got %v, calls %v", err, engine.gone)
	}
}

func TestConnectGivesUpWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, "unix://"+filepath.Join(t.TempDir(), "none.sock"), t.TempDir()); err == nil {
		t.Error("connected to nobody")
	}
}
