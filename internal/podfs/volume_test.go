// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		os.Exit(child(what, os.Args[1:]))
	}
	bpftest.Main(m)
}

// types is shared as in production.
var types = btf.NewCache()

var (
	u32   = &btf.Int{Name: "__u32", Size: 4}
	u64   = &btf.Int{Name: "__u64", Size: 8}
	stats = &btf.Struct{Name: "stats", Size: 16, Members: []btf.Member{
		{Name: "packets", Type: u64},
		{Name: "bytes", Type: u64, Offset: 64},
	}}
)

// newMap makes a map and closes it after the test.
func newMap(t testing.TB, mt ebpf.MapType, key, value, entries uint32) *ebpf.Map {
	t.Helper()
	bpftest.Root(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "data", Type: mt, KeySize: key, ValueSize: value, MaxEntries: entries})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// content is a volume with a map of each kind.
func content(t testing.TB) Content {
	t.Helper()
	flows := newMap(t, ebpf.LRUHash, 4, 16, 64)
	if err := flows.Put(uint32(443), []uint64{12, 3400}); err != nil {
		t.Fatal(err)
	}
	counters := newMap(t, ebpf.Array, 4, 8, 2)
	if err := counters.Put(uint32(1), uint64(7)); err != nil {
		t.Fatal(err)
	}
	events := newMap(t, ebpf.RingBuf, 0, 0, 4096)
	return Content{
		Volume: Volume{
			Image:    Image{Reference: "ghcr.io/acme/count:v1", Digest: "sha256:" + strings.Repeat("0", 64)},
			Signer:   "acme",
			Programs: []Program{{Name: "count", Hook: "xdp", Point: "xdp eth0"}},
		},
		Types: []byte("the object's BTF"),
		Maps: []Map{
			{Name: "flows", Map: flows, Key: u32, Value: stats, Access: volume.ReadOnly},
			{Name: "counters", Map: counters},
			{Name: "events", Map: events},
		},
	}
}

// target returns a path below a directory that anybody may enter.
func target(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "mount")
}

// mounted makes a volume and takes it away after the test.
func mounted(t testing.TB, c Content) string {
	t.Helper()
	dir := target(t)
	if err := mountContent(t.Context(), dir, c, Options{Types: types}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

func unmount(t testing.TB, dir string) {
	t.Helper()
	if err := Unmount(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("after unmount: %v", err)
	}
}

// mountContent is what a publish does, in one step.
func mountContent(ctx context.Context, target string, c Content, opts Options) error {
	t, err := Build(ctx, c, opts)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Mount(target)
}
