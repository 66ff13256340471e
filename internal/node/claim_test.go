// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestStateDirectoryHasOneDaemon(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	release, err := Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("state directory %s: another bpfvol serve works on it: \"pid %d on %s\"; stop that first", dir, os.Getpid(), host)
	if _, err := Claim(dir); err == nil || err.Error() != want {
		t.Errorf("second: %v, want %s", err, want)
	}
	release()
	if release, err = Claim(dir); err != nil {
		t.Fatalf("after release: %v", err)
	}
	release()
}
