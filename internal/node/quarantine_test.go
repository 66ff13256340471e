// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// spoiled are records that cannot be read, and the reason that is told.
var spoiled = map[string]struct {
	text  string
	put   func(path string) error // in place of text
	why   string
	newer bool
}{
	"truncated":       {text: `{"schema":2,"volu`, why: "it is no JSON"},
	"garbage":         {text: "\x00\xff\x00", why: "it is no JSON"},
	"of zero bytes":   {text: "", why: "it is empty"},
	"of another id":   {text: `{"schema":2,"volumeID":"somebody-else"}`, why: "it is of another volume"},
	"of other types":  {text: `{"schema":2,"volumeID":["a","list"]}`, why: "it is malformed"},
	"of an old kind":  {text: `{"schema":1}`, why: "schema 1, this version reads 2"},
	"of a newer one":  {text: `{"schema":99,"volumeID":["of","another","type"]}`, why: "a newer version of bpfvol wrote it: schema 99, this one reads 2", newer: true},
	"a pipe":          {put: func(path string) error { return unix.Mkfifo(path, 0o600) }, why: "it is no file"},
	"a directory":     {put: func(path string) error { return os.Mkdir(path, 0o700) }, why: "it is no file"},
	"a symbolic link": {put: func(path string) error { return os.Symlink("/etc/hostname", path) }, why: "it is no file"},
}

// spoil spoils the record of a volume.
func spoil(t *testing.T, f *fixture, req Request, what string) {
	t.Helper()
	path := f.records.path(volume.FileName(req.VolumeID))
	remove(t, path)
	put := spoiled[what].put
	if put == nil {
		put = func(path string) error { return os.WriteFile(path, []byte(spoiled[what].text), 0o600) }
	}
	if err := put(path); err != nil {
		t.Fatal(err)
	}
}

// Nobody knows what such a volume was asked to be. Its pod uses it, so it runs on, over restarts and when kubelet publishes
// it again; Unpublish, which kubelet sends with id and target, leaves nothing of it.
func TestVolumeOutlivesItsRecord(t *testing.T) {
	f := newFixture(t)
	image := f.signed(t, "hooks", hooks())
	for what, c := range spoiled {
		t.Run(what, func(t *testing.T) {
			req := f.request(t, image, onGetpgid)
			if err := f.Publish(f.ctx, req); err != nil {
				t.Fatal(err)
			}
			spoil(t, f, req, what)
			f.restart(t)
			if err := f.Publish(f.ctx, req); err != nil {
				t.Errorf("publish again: %v", err)
			}
			wantCounted(t, req.Target, 2)

			list, err := f.List()
			if err != nil || len(list) != 1 || list[0].State != stateUnreadable {
				t.Errorf("list is %+v, %v", list, err)
			}
			fix := "delete the pod to take the volume away"
			if c.newer {
				fix = "install that version again, or delete the pod"
			}
			health, err := f.Health(f.ctx, req.VolumeID, "")
			if want := fmt.Sprintf("record: cannot be read: %s; %s", c.why, fix); err != nil || health.String() != want {
				t.Errorf("health is %q, %v, want %q", health, err, want)
			}
			if files, err := f.Stats(f.ctx, req.VolumeID, req.Target); err != nil || files == 0 {
				t.Errorf("stats are %d, %v", files, err)
			}
			r := NewReconciler(f.Engine, ReconcileOptions{Repair: true})
			if err := r.Pass(f.ctx); err != nil {
				t.Error(err)
			}
			if got := r.Last(); got.Unreadable != 1 || got.Repairs+got.Failures+got.Orphans != 0 {
				t.Errorf("report is %+v, want one unreadable record and nothing done", got)
			}

			if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
				t.Error(err)
			}
			f.wantNothing(t, req)
			// The id is free again.
			f.publish(t, req)
			wantCounted(t, req.Target, 1)
			if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is not whole is started over, but not what a newer version knows more about.
func TestPublishOverARecordThatCannotBeRead(t *testing.T) {
	f := newFixture(t)
	image := f.signed(t, "hooks", hooks())
	for what, c := range spoiled {
		t.Run(what, func(t *testing.T) {
			req := f.request(t, image, onGetpgid)
			if err := f.Publish(f.ctx, req); err != nil {
				t.Fatal(err)
			}
			spoil(t, f, req, what)
			for _, dir := range []string{"maps", "json", ""} {
				if err := unix.Unmount(filepath.Join(req.Target, dir), 0); err != nil {
					t.Fatal(err)
				}
			}
			err := f.Publish(f.ctx, req)
			switch {
			case c.newer && !errors.Is(err, ErrNewer):
				t.Errorf("error is %v, want %v", err, ErrNewer)
			case !c.newer && err != nil:
				t.Error(err)
			case !c.newer:
				wantCounted(t, req.Target, 1)
			}
			if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
				t.Error(err)
			}
			f.wantNothing(t, req)
		})
	}
}
