// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

const grace = 5 * time.Minute

// published by a kubelet that knows of the volume.
func (f *fixture) publishKnown(t *testing.T, req Request) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(req.Target), kubeletData), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.publish(t, req)
}

func (f *fixture) podDir(req Request) string { return filepath.Join(f.pods, req.Pod.UID) }

// removePod does what happens where kubelet lost a pod: in another mount namespace, mounts do not hinder the removal.
func removePod(t *testing.T, f *fixture, req Request) {
	t.Helper()
	if err := unix.Unmount(req.Target, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(f.podDir(req)); err != nil {
		t.Fatal(err)
	}
}

func removeData(t *testing.T, _ *fixture, req Request) {
	t.Helper()
	remove(t, filepath.Join(filepath.Dir(req.Target), kubeletData))
}

func wantOrphans(t *testing.T, f *fixture, r *Reconciler, want int) {
	t.Helper()
	if err := r.Pass(f.ctx); err != nil {
		t.Error(err)
	}
	if got := r.Last().Orphans; got != want {
		t.Errorf("%d volumes were taken away, want %d", got, want)
	}
}

func TestVolumeOfAPodThatIsGoneIsTakenAwayAfterTheGrace(t *testing.T) {
	for name, lose := range map[string]func(*testing.T, *fixture, Request){"its directory": removePod, "kubelet's record": removeData} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			image := f.signed(t, "hooks", hooks())
			gone, other := f.request(t, image, onGetpgid), f.request(t, image, onGetpgid)
			f.publishKnown(t, gone)
			f.publishKnown(t, other)
			r, clock := f.reconciler(grace)
			wantOrphans(t, f, r, 0)
			clock.now = clock.now.Add(24 * time.Hour)
			wantOrphans(t, f, r, 0)

			lose(t, f, gone)
			wantOrphans(t, f, r, 0)
			clock.now = clock.now.Add(grace - time.Second)
			wantOrphans(t, f, r, 0)
			clock.now = clock.now.Add(time.Second)
			wantOrphans(t, f, r, 1)
			if _, err := f.records.read(volume.FileName(gone.VolumeID)); err == nil {
				t.Error("the record is still there")
			}
			wantCounted(t, other.Target, 2)
		})
	}
}

// A pod that is back, or a kubelet that writes its file anew, begins the grace anew.
func TestGraceBeginsAnewWhenThePodIsBack(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publishKnown(t, req)
	data := filepath.Join(filepath.Dir(req.Target), kubeletData)
	r, clock := f.reconciler(grace)
	for range 3 {
		if err := os.Rename(data, data+".away"); err != nil {
			t.Fatal(err)
		}
		wantOrphans(t, f, r, 0)
		clock.now = clock.now.Add(grace - time.Second)
		if err := os.Rename(data+".away", data); err != nil {
			t.Fatal(err)
		}
		wantOrphans(t, f, r, 0)
	}
}

// kubelet may come back to a target between the look at its files and the lock.
func TestOrphanThatKubeletComesBackToIsLeft(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publishKnown(t, req)
	removeData(t, f, req)
	back := false
	clock := &clock{now: time.Now()}
	r := NewReconciler(f.Engine, ReconcileOptions{Grace: grace, Now: func() time.Time {
		if back { // asked after the look
			if err := os.WriteFile(filepath.Join(filepath.Dir(req.Target), kubeletData), []byte("{}"), 0o600); err != nil {
				t.Error(err)
			}
			if err := f.Publish(f.ctx, req); err != nil {
				t.Error(err)
			}
		}
		return clock.now
	}})
	wantOrphans(t, f, r, 0)
	back, clock.now = true, clock.now.Add(grace)
	wantOrphans(t, f, r, 0)
	wantCounted(t, req.Target, 2)
}

func TestOrphanThatACallHoldsIsLeft(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publishKnown(t, req)
	removeData(t, f, req)
	r, clock := f.reconciler(grace)
	wantOrphans(t, f, r, 0)
	clock.now = clock.now.Add(grace)
	unlock, err := f.locks.try(volume.FileName(req.VolumeID))
	if err != nil {
		t.Fatal(err)
	}
	wantOrphans(t, f, r, 0)
	unlock()
	wantOrphans(t, f, r, 1)
}

// The command line publishes to any directory, and kubelet has no file there.
func TestVolumesOfTheCommandLineAreNoOrphans(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	req.Target, req.Pod = filepath.Join(t.TempDir(), "maps"), Pod{}
	anywhere := f.opts
	anywhere.TargetRoot = ""
	local := Look(anywhere)
	if err := local.Publish(f.ctx, req); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := local.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
			t.Error(err)
		}
	})
	r, clock := f.reconciler(grace)
	wantOrphans(t, f, r, 0)
	clock.now = clock.now.Add(time.Hour)
	wantOrphans(t, f, r, 0)
	wantCounted(t, req.Target, 1)
}

// A disk of kubelet's that is not mounted has no pods at all. That is no reason to end what they run.
func TestKubeletDirectoryThatIsNotMountedProvesNothing(t *testing.T) {
	for name, away := range map[string]func(*testing.T, *fixture){
		"gone": func(t *testing.T, f *fixture) {
			if err := os.Rename(f.pods, f.pods+".away"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.Rename(f.pods+".away", f.pods); err != nil {
					t.Error(err)
				}
			})
		},
		"empty": func(t *testing.T, f *fixture) {
			if err := unix.Mount("tmpfs", f.pods, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(f.pods, 0); err != nil {
					t.Error(err)
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
			f.publishKnown(t, req)
			away(t, f)
			r, clock := f.reconciler(grace)
			for range 3 {
				if err := r.Pass(f.ctx); err == nil {
					t.Error("a pass without kubelet's directory is no error")
				}
				clock.now = clock.now.Add(grace)
			}
			if got := r.Last(); got.Orphans != 0 {
				t.Errorf("report is %+v, want no orphans", got)
			}
			f.restart(t) // recovery takes the target for no leftover, either
			if list, err := f.List(); err != nil || len(list) != 1 {
				t.Errorf("list is %+v, %v, want the volume", list, err)
			}
		})
	}
}

// The pods of a PersistentVolume come and go by themselves: of one that is gone, only its target is taken away.
func TestOrphanedTargetLeavesTheOthers(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	second := f.another(t, first)
	f.publishKnown(t, first)
	f.publishKnown(t, second)
	removeData(t, f, first)
	r, clock := f.reconciler(grace)
	wantOrphans(t, f, r, 0)
	clock.now = clock.now.Add(grace)
	wantOrphans(t, f, r, 1)
	if _, err := os.Lstat(first.Target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("target of the pod that is gone: error is %v, want none there", err)
	}
	wantCounted(t, second.Target, 2)
	removeData(t, f, second)
	wantOrphans(t, f, r, 1)
	clock.now = clock.now.Add(grace)
	wantOrphans(t, f, r, 2)
	f.wantNothing(t, second)
}
