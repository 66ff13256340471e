// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

var (
	flow = &btf.Struct{Name: "flow", Size: 16, Members: []btf.Member{
		{Name: "saddr", Type: &btf.Typedef{Name: "__be32", Type: u32}},
		{Name: "daddr", Type: &btf.Typedef{Name: "__be32", Type: u32}, Offset: 32},
		{Name: "sport", Type: &btf.Typedef{Name: "__be16", Type: u16}, Offset: 64},
		{Name: "dport", Type: &btf.Typedef{Name: "__be16", Type: u16}, Offset: 80},
		{Name: "proto", Type: u8, Offset: 96},
	}}
	stats = &btf.Struct{Name: "stats", Size: 32, Members: []btf.Member{
		{Name: "packets", Type: u64},
		{Name: "bytes", Type: u64, Offset: 64},
		{Name: "comm", Type: &btf.Array{Type: char, Nelems: 16}, Offset: 128},
	}}
)

const entries = 100_000

// flows fills a hash map with 100,000 entries.
func flows(b *testing.B) (*ebpf.Map, MapSpec) {
	b.Helper()
	bpftest.Root(b)
	spec := MapSpec{Type: ebpf.Hash, KeySize: 16, ValueSize: 32, Key: flow, Value: stats}
	m := newMap(b, spec, entries)
	keys, values := make([][16]byte, entries), make([][32]byte, entries)
	for i := range keys {
		keys[i] = [16]byte{10, byte(i), byte(i >> 8), byte(i >> 16), 10, 0, 0, 1, 0x9c, 0x40, 0x01, 0xbb, 6}
		values[i] = [32]byte{byte(i), 2, 3, 8: 1, 2, 3, 4, 16: 'n', 'g', 'i', 'n', 'x'}
	}
	if _, err := m.BatchUpdate(keys, values, nil); err != nil {
		b.Fatal(err)
	}
	return m, spec
}

// BenchmarkCat reads the file of a map with 100,000 entries: json.cat_100k_entries_ms.
func BenchmarkCat(b *testing.B) {
	m, spec := flows(b)
	it := attach(b, m, spec)
	buf := make([]byte, 1<<16)
	for b.Loop() {
		r, err := it.Open()
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
		r.Close()
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(n)
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "json.cat_100k_entries_ms")
}

// BenchmarkLookupBatch reads the same bytes by BPF_MAP_LOOKUP_BATCH, untyped: json.lookup_batch_100k_ms.
func BenchmarkLookupBatch(b *testing.B) {
	m, _ := flows(b)
	keys, values := make([][16]byte, 4096), make([][32]byte, 4096)
	for b.Loop() {
		var cursor ebpf.MapBatchCursor
		got := 0
		for {
			n, err := m.BatchLookup(&cursor, keys, values, nil)
			got += n
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		if got != entries {
			b.Fatalf("got %d entries", got)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "json.lookup_batch_100k_ms")
}

// BenchmarkIterator is what one file costs a publish: make, load, attach.
func BenchmarkIterator(b *testing.B) {
	bpftest.Root(b)
	for name, value := range map[string]btf.Type{
		"counter":  u64,
		"stats":    stats,
		"ipv6":     in6,
		"path":     &btf.Array{Type: char, Nelems: 4096},
		"slots":    &btf.Array{Type: u64, Nelems: 512},
		"versions": &btf.Array{Type: stats, Nelems: 100},
		"peers":    &btf.Array{Type: in6, Nelems: 100},
	} {
		for _, mt := range []ebpf.MapType{ebpf.Hash, ebpf.PerCPUHash} {
			b.Run(fmt.Sprintf("%s/%s", name, mt), func(b *testing.B) {
				spec := typed(b, mt, u32, value)
				m := newMap(b, spec, 1)
				for b.Loop() {
					it, err := tryAttach(m, spec)
					if err != nil {
						b.Fatalf("%v", err)
					}
					it.Close()
				}
			})
		}
	}
}
