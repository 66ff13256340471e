// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
)

// victim is what a process that is to die is told, in the environment variable of the same name.
type victim struct {
	Stage              Stage
	Request            Request
	StateDir, BPFFSDir string
	TargetRoot         string
	Registry           string
}

const victimVariable = "BPFVOL_TEST_VICTIM"

// TestVictim publishes and dies by SIGKILL when it has reached its stage. It does nothing unless it is told to.
func TestVictim(t *testing.T) {
	told := os.Getenv(victimVariable)
	if told == "" {
		return // the process that TestKilledAfterEachStage starts is told
	}
	var v victim
	if err := json.Unmarshal([]byte(told), &v); err != nil {
		t.Fatal(err)
	}
	engine, err := Open(Options{
		StateDir: v.StateDir, BPFFSDir: v.BPFFSDir, TargetRoot: v.TargetRoot,
		Images: imagetest.Store(t, v.Registry), Policies: verify.Static{verify.UnsignedPolicy()},
		Reached: func(s Stage) {
			if s == v.Stage {
				unix.Kill(os.Getpid(), unix.SIGKILL)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Fatal("survived: ", engine.Publish(t.Context(), v.Request))
}

// dies publishes in a process that dies when it has reached a stage.
func (f *fixture) dies(t *testing.T, stage Stage, req Request) {
	t.Helper()
	told, err := json.Marshal(victim{stage, req, f.opts.StateDir, f.opts.BPFFSDir, f.opts.TargetRoot, f.registry.Host})
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestVictim$")
	child.Env = append(os.Environ(), victimVariable+"="+string(told), "TMPDIR="+t.TempDir()) // who is killed cleans up nothing
	out, _ := child.CombinedOutput()
	if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended by itself: %v: %s", child.ProcessState, out)
	}
}

func TestKilledAfterEachStage(t *testing.T) {
	f := newFixture(t)
	image := f.signed(t, "hooks", hooks())
	for _, stage := range Stages {
		t.Run(string(stage), func(t *testing.T) {
			req := f.request(t, image, onGetpgid)
			f.dies(t, stage, req)
			f.restart(t)
			if stage == StagePublished {
				// Whole: it runs on, undisturbed by the restart.
				wantCounted(t, req.Target, 2)
			} else {
				f.wantNothing(t, req)
			}
			// kubelet tries again, then the pod goes.
			if err := f.Publish(f.ctx, req); err != nil {
				t.Fatalf("retry: %v", err)
			}
			hits(t, req.Target)
			if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
				t.Fatal(err)
			}
			f.wantNothing(t, req)
		})
	}
}

// Without a restart in between, the retry itself takes away what the crash left.
func TestRetryAfterKillNeedsNoRecovery(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	rec, err := f.records.read(volume.FileName(req.VolumeID))
	if err != nil {
		t.Fatal(err)
	}
	rec.State = statePublishing
	if err := f.records.write(rec); err != nil {
		t.Fatal(err)
	}
	if err := f.Publish(f.ctx, req); err != nil {
		t.Fatal(err)
	}
	wantCounted(t, req.Target, 1)
}

// The mount went away under us: node reboot of the mount table, or an admin's umount.
func TestPublishAfterTheMountIsGone(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	for _, dir := range []string{"maps", "json", ""} {
		if err := unix.Unmount(filepath.Join(req.Target, dir), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Publish(f.ctx, req); err != nil {
		t.Fatal(err)
	}
	wantCounted(t, req.Target, 1)
}

// Somebody unmounted the bpffs, and with it all pins: the mounts on the targets stand, but nothing runs.
func TestPublishAfterThePinsAreGone(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	if err := unpin(f.pins(volume.FileName(req.VolumeID))); err != nil {
		t.Fatal(err)
	}
	if err := f.Publish(f.ctx, req); err != nil {
		t.Fatal(err)
	}
	wantCounted(t, req.Target, 1)
}

// A volume that cannot be taken away is one pod's trouble: the others of the node must get their volumes.
func TestRecoverGoesOnPastAStuckVolume(t *testing.T) {
	f := newFixture(t)
	image := f.signed(t, "hooks", hooks())
	stuck := f.request(t, image, onGetpgid)
	f.publish(t, stuck)
	if err := unix.Mount("somebody", stuck.Target, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(stuck.Target, 0); err != nil {
			t.Error(err)
		}
	})
	f.restart(t)
	f.publish(t, f.request(t, image, onGetpgid))
}

// A newer version of bpfvol left a point behind that this one cannot read: an admin who goes back to the old version has
// trouble enough.
func TestRecoverGoesOnPastAPointThatItCannotRead(t *testing.T) {
	f := newFixture(t)
	point := filepath.Join(f.opts.BPFFSDir, "points", "xdp-1-1")
	if err := os.MkdirAll(point, 0o700); err != nil {
		t.Fatal(err)
	}
	text := []byte(`{"version":99}`)
	record, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(text)), MaxEntries: 1, Contents: []ebpf.MapKV{{Key: uint32(0), Value: text}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer record.Close()
	if err := record.Pin(filepath.Join(point, "record")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(record.Unpin(), os.Remove(point)); err != nil {
			t.Error(err)
		}
	})
	f.restart(t)
	f.publish(t, f.request(t, f.signed(t, "hooks", hooks()), onGetpgid))
}

// A target that cannot be looked at hides no other: volumes are listed and looked after, and another pod's target is recovered.
func TestTargetThatCannotBeLookedAtHidesNoOther(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	odd, lost := f.another(t, first), f.another(t, first)
	for _, req := range []Request{first, odd, lost} {
		f.publish(t, req)
	}
	removePod(t, f, odd)
	if err := os.Symlink(f.podDir(odd), f.podDir(odd)); err != nil { // to itself
		t.Fatal(err)
	}
	if err := unix.Unmount(lost.Target, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	f.restart(t)
	rec, err := f.records.read(volume.FileName(first.VolumeID))
	if err != nil {
		t.Fatal(err)
	}
	if rec.Target(lost.Target) != nil || rec.Target(odd.Target) == nil {
		t.Errorf("targets are %q, want those of the other two", rec.paths())
	}
	wantHealth(t, f, first, "target: directory above it: too many levels of symbolic links")
	r, _ := f.reconciler(0)
	remove(t, firstPin(t, f, "volumes/*/links/0-0-on_tracepoint"))
	pass(t, f, r, 1)
	wantCounted(t, first.Target, 2)
	remove(t, f.podDir(odd))
}
