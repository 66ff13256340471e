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
	if n, err := f.Stats(f.ctx, req.VolumeID, req.Target); err != nil || n != 5 {
		t.Errorf("Stats: %d, %v; want 5 files: two in maps, two in json, one in rw", n, err)
	}
	b.SendUDP(t, a.Addr, 1)
	wantLine(t, req.Target, "flows", `{"saddr":"`+b.Addr.String()+`","protocol":"UDP"},"value":{"packets":1001,`)
}

// The pod of a volume of its own says both in one place. Of a PersistentVolume an admin says what may be written, and one
// pod of several that it wants less.
func TestReadOnlyVolumeHasNothingToWrite(t *testing.T) {
	f := newFixture(t)
	own := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	own.Attributes["maps"] = "hits:rw"
	own.ReadOnly = true
	if err := f.Publish(f.ctx, own); !errors.As(err, new(*volume.AttributeError)) {
		t.Errorf("a pod's own volume: %v, want an *AttributeError", err)
	}
	f.wantNothing(t, own)

	reader := own
	reader.Subject.Persistent = true
	f.publish(t, reader)
	writer := f.request(t, "", "")
	writer.VolumeID, writer.Attributes, writer.Subject = reader.VolumeID, reader.Attributes, reader.Subject
	f.publish(t, writer)
	for access, req := range map[volume.Access]Request{volume.ReadOnly: reader, volume.ReadWrite: writer} {
		v, err := podfs.Read(req.Target)
		if err != nil || len(v.Maps) != 1 || v.Maps[0].Access != access {
			t.Errorf("volume.json says %+v, %v; want access %s", v.Maps, err, access)
		}
	}
	if _, err := os.Stat(filepath.Join(reader.Target, "rw")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("rw of the reader: %v, want none there", err)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(writer.Target, "rw", "hits"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Put(uint32(0), uint64(1_000_000)); err != nil {
		t.Fatal(err)
	}
	if got := hits(t, reader.Target); got < 1_000_000 {
		t.Errorf("the reader sees %d, want what the writer wrote", got)
	}
}
