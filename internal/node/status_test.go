// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestLookChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "never-used")
	e := Look(Options{StateDir: filepath.Join(dir, "state"), BPFFSDir: filepath.Join(dir, "bpffs")})
	volumes, err := e.List()
	if err != nil || len(volumes) != 0 {
		t.Errorf("List() = %v, %v", volumes, err)
	}
	points, err := e.Status()
	if err != nil || len(points) != 0 {
		t.Errorf("Status() = %v, %v", points, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory exists now: %v", err)
	}
}

// A record is written beside the one that it replaces.
func TestListShowsAVolumeOnceWhileItsRecordIsWritten(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	if err := os.WriteFile(f.records.path(volume.FileName(req.VolumeID))+".tmp", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if volumes, err := f.List(); err != nil || len(volumes) != 1 {
		t.Errorf("List() = %+v, %v", volumes, err)
	}
	if n, err := f.Count(); err != nil || n != 1 {
		t.Errorf("Count() = %d, %v", n, err)
	}
}

func TestUnreadableRecordHidesNoOther(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	path := f.records.path("broken")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	volumes, err := f.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(volumes) != 2 || volumes[0].State != stateUnreadable || volumes[1].VolumeID != req.VolumeID {
		t.Errorf("List() = %+v", volumes)
	}
	if points, err := f.Status(); err != nil || len(points) != 1 {
		t.Errorf("Status() = %+v, %v", points, err)
	}
}

// One record that cannot be read hides neither its own program nor those of others. The CLI's ids are kept by their hash.
func TestStatusShowsWhatRunsWithoutARecord(t *testing.T) {
	for _, id := range []string{"csi-0123", "local:/run/count"} {
		t.Run(id, func(t *testing.T) {
			f := newFixture(t)
			image := f.signed(t, "hooks", hooks())
			bad := f.request(t, image, onGetpgid)
			bad.VolumeID = id
			name := volume.FileName(id)
			f.publish(t, bad)
			f.publish(t, f.request(t, image, onGetpgid))
			if err := os.WriteFile(f.records.path(name), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			points, err := f.Status()
			if err != nil {
				t.Fatal(err)
			}
			if len(points) != 2 || points[0].Point != "tracepoint syscalls/sys_enter_getpgid" || points[1].Point != "unknown" ||
				points[1].Members[0].Program != "on_tracepoint" || points[1].Members[0].VolumeID != name || points[1].Members[0].Image != "" {
				t.Errorf("status is %+v", points)
			}
		})
	}
}
