// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/podfs/mapjson"
)

const (
	jsonEntries = 100_000
	jsonRounds  = 15
)

// benchJSON reads the same map of 100,000 flows as text by its iterator and as bytes by BPF_MAP_LOOKUP_BATCH, in turn.
func benchJSON(context.Context, string) error {
	object, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpf.Count()))
	if err != nil {
		return err
	}
	spec := object.Maps["flows"]
	spec.Type, spec.MaxEntries = ebpf.Hash, jsonEntries // an LRU map may drop entries before it is full
	flows, err := ebpf.NewMap(spec)
	if err != nil {
		return err
	}
	defer flows.Close()
	type key struct{ Source, Protocol uint32 }
	type traffic struct{ Packets, Bytes uint64 }
	keys, values := make([]key, jsonEntries), make([]traffic, jsonEntries)
	for i := range keys {
		keys[i], values[i] = key{uint32(i), 6}, traffic{uint64(i), uint64(i) * 1500}
	}
	if _, err := flows.BatchUpdate(keys, values, nil); err != nil {
		return err
	}
	iterator, err := attachIterator(flows, spec)
	if err != nil {
		return err
	}
	defer iterator.Close()

	var cat, lookup []time.Duration
	for range jsonRounds {
		start := time.Now()
		lines, err := readAll(iterator)
		if err != nil {
			return err
		}
		cat = append(cat, time.Since(start))
		if lines != jsonEntries {
			return fmt.Errorf("the iterator printed %d lines, want %d", lines, jsonEntries)
		}
		start = time.Now()
		if err := lookUpAll(flows, keys[:4096], values[:4096]); err != nil {
			return err
		}
		lookup = append(lookup, time.Since(start))
	}
	figure("json.cat_100k_entries_ms", median(cat), "ms")
	figure("json.lookup_batch_100k_ms", median(lookup), "ms")
	return nil
}

func attachIterator(m *ebpf.Map, spec *ebpf.MapSpec) (*link.Iter, error) {
	program, err := mapjson.Iterator(mapjson.MapSpec{
		Name: spec.Name, Type: spec.Type, KeySize: spec.KeySize, ValueSize: spec.ValueSize, Key: spec.Key, Value: spec.Value,
	})
	if err != nil {
		return nil, err
	}
	loaded, err := ebpf.NewCollectionWithOptions(program, ebpf.CollectionOptions{Cache: btf.NewCache()})
	if err != nil {
		return nil, err
	}
	defer loaded.Close()
	for _, prog := range loaded.Programs {
		return link.AttachIter(link.IterOptions{Program: prog, Map: m})
	}
	return nil, errors.New("no iterator program")
}

// readAll reads as `cat` does, in pieces of 128 KiB, and counts lines.
func readAll(it *link.Iter) (lines int, err error) {
	r, err := it.Open()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	buf := make([]byte, 128<<10)
	for {
		n, err := r.Read(buf)
		lines += bytes.Count(buf[:n], []byte("\n"))
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func lookUpAll[K, V any](m *ebpf.Map, keys []K, values []V) error {
	var cursor ebpf.MapBatchCursor
	for got := 0; ; {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		got += n
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			if got != jsonEntries {
				return fmt.Errorf("looked up %d entries, want %d", got, jsonEntries)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
