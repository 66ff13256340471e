// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
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
