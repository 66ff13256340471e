// SPDX-License-Identifier: Apache-2.0

package pin

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestMain(m *testing.M) { bpftest.Main(m) }

func TestBytesStayWhatTheyAre(t *testing.T) {
	path := filepath.Join(bpftest.BPFFS(t), "bytes")
	if _, err := ReadBytes(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing pinned: error is %v, want not exist", err)
	}
	want := []byte(`{"version":1}`)
	m, err := Bytes("bytes", want)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadBytes(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if err := m.Update(uint32(0), make([]byte, len(want)), ebpf.UpdateAny); err == nil {
		t.Error("the bytes can be changed")
	}
}

func TestLockWaitsForItsHolder(t *testing.T) {
	dir := t.TempDir()
	held, err := Lock(t.Context(), dir, "nobody")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx, dir, "the test"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v, want deadline exceeded", err)
	}
	time.AfterFunc(10*time.Millisecond, func() { held.Close() })
	again, err := Lock(t.Context(), dir, "the test")
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestWhatIsGoneIsRemovedAndEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := Remove(dir); err != nil {
		t.Error(err)
	}
	if names, err := Names(dir); len(names) > 0 || err != nil {
		t.Errorf("names are %v, %v, want none", names, err)
	}
}
