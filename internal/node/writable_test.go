// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// setFlow writes what was counted of UDP packets from an address.
func setFlow(t *testing.T, pin string, saddr []byte, packets uint64) error {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return err
	}
	defer m.Close()
	key := append(append([]byte{}, saddr...), 17, 0, 0, 0)
	value := binary.NativeEndian.AppendUint64(nil, packets)
	return m.Put(key, binary.NativeEndian.AppendUint64(value, 0))
}

func TestPodWritesWhatItsProgramReads(t *testing.T) {
	f := newFixture(t)
	a, b := bpftest.Pair(t)
	req := f.request(t, f.signed(t, "count", bpf.Count()), "{program: count, xdp: {interface: veth0}}")
	req.Attributes["maps"] = "flows:rw, totals"
	in(t, a, func() error { return f.Publish(f.ctx, req) })
	t.Cleanup(func() { in(t, a, func() error { return f.Unpublish(f.ctx, req.VolumeID, req.Target) }) })

	saddr := b.Addr.AsSlice()
	if err := setFlow(t, filepath.Join(req.Target, "maps", "flows"), saddr, 1000); !errors.Is(err, unix.EROFS) {
		t.Errorf("through maps/: %v, want EROFS", err)
	}
	if _, err := os.Stat(filepath.Join(req.Target, "rw", "totals")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("rw/totals, which was not asked for: %v", err)
	}
	if err := setFlow(t, filepath.Join(req.Target, "rw", "flows"), saddr, 1000); err != nil {
		t.Fatalf("through rw/: %v", err)
	}
	b.SendUDP(t, a.Addr, 1)
	wantLine(t, req.Target, "flows", `{"saddr":"`+b.Addr.String()+`","protocol":"UDP"},"value":{"packets":1001,`)
}

// The pod of a volume of its own says both in one place. Of a PersistentVolume an admin says what may be written, and one
// pod of several that it wants less.
func TestReadOnlyVolumeHasNothingToWrite(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	req.Attributes["maps"] = "hits:rw"
	req.ReadOnly = true
	if err := f.Publish(f.ctx, req); !errors.As(err, new(*volume.AttributeError)) {
		t.Errorf("a pod's own volume: %v, want an *AttributeError", err)
	}
	f.wantNothing(t, req)

	req.Subject.Persistent = true
	f.publish(t, req)
	if _, err := os.Stat(filepath.Join(req.Target, "rw")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("rw: %v, want none there", err)
	}
	v, err := podfs.Read(req.Target)
	if err != nil || len(v.Maps) != 1 || v.Maps[0].Access != volume.ReadOnly {
		t.Errorf("volume.json says %+v, %v; want access ro", v.Maps, err)
	}
	before := hits(t, req.Target)
	getpgid(t, 1)
	if got := hits(t, req.Target); got != before+1 {
		t.Errorf("counted %d, want %d", got, before+1)
	}
}
