// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/dispatcher/fuse"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// benchDispatcher says what it costs that a point has several members: for a packet, for a change of membership, and
// for traffic on a wire.
func benchDispatcher(ctx context.Context, _ string) error {
	for _, measure := range []func(context.Context) error{benchPacket, benchSwap, benchTraffic} {
		if err := inOwnNamespaces(func() error { return measure(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// xdpPass is what every program here returns.
var xdpPass = volume.XDPVerdicts["pass"]

// workshop makes programs for XDP. What it made is open until close.
type workshop struct {
	types *btf.Cache
	made  []io.Closer
}

func newWorkshop() *workshop { return &workshop{types: btf.NewCache()} }

func (w *workshop) close() {
	for _, c := range slices.Backward(w.made) {
		c.Close()
	}
}

// program loads the program of a name from an object, alone and with maps of its own.
func (w *workshop) program(object []byte, name string) (dispatcher.Program, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return dispatcher.Program{}, err
	}
	coll, err := w.collection(spec, name)
	if err != nil {
		return dispatcher.Program{}, err
	}
	return dispatcher.Program{Program: coll.Programs[name], Spec: spec.Programs[name], Maps: coll.Maps}, nil
}

// collection loads one of an object's programs, and its maps.
func (w *workshop) collection(spec *ebpf.CollectionSpec, name string) (*ebpf.Collection, error) {
	only := spec.Copy()
	only.Programs = map[string]*ebpf.ProgramSpec{name: only.Programs[name]}
	coll, err := ebpf.NewCollection(only)
	if err != nil {
		return nil, err
	}
	for _, m := range coll.Maps {
		w.made = append(w.made, m)
	}
	w.made = append(w.made, coll.Programs[name])
	return coll, nil
}

// programs loads n of them.
func (w *workshop) programs(object []byte, name string, n int) ([]dispatcher.Program, error) {
	programs := make([]dispatcher.Program, n)
	for i := range programs {
		var err error
		if programs[i], err = w.program(object, name); err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
	}
	return programs, nil
}

// set puts programs together as package dispatcher does, each with the default proceedOn.
func (w *workshop) set(programs []dispatcher.Program) (fuse.Set, error) {
	set := fuse.Set{Type: ebpf.XDP, Name: "bench", Done: int32(xdpPass)}
	for i, p := range programs {
		code, err := fuse.Settle(p.Spec, w.types)
		if err != nil {
			return fuse.Set{}, err
		}
		m := fuse.Member{Code: code, Proceed: []int32{int32(xdpPass)}, Slot: fuse.Fused, Counter: i}
		for _, name := range code.Maps {
			m.Descriptors = append(m.Descriptors, p.Maps[name].FD())
		}
		set.Members = append(set.Members, m)
	}
	return set, nil
}

// fused is the program of a set whose members are all fused.
func (w *workshop) fused(programs []dispatcher.Program) (*ebpf.Program, error) {
	set, err := w.set(programs)
	if err != nil {
		return nil, err
	}
	return w.load(set)
}

// counted is the same with counters of what each member returns.
func (w *workshop) counted(programs []dispatcher.Program) (*ebpf.Program, error) {
	set, err := w.set(programs)
	if err != nil {
		return nil, err
	}
	counters, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: uint32(len(fuse.Counters{}) * 8), MaxEntries: uint32(len(programs)),
	})
	if err != nil {
		return nil, err
	}
	w.made = append(w.made, counters)
	set.Stats = counters.FD()
	return w.load(set)
}

// slotted is the program of a set whose members all have a slot.
func (w *workshop) slotted(programs []dispatcher.Program) (*ebpf.Program, error) {
	set, err := w.set(programs)
	if err != nil {
		return nil, err
	}
	slots, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: uint32(len(programs))})
	if err != nil {
		return nil, err
	}
	w.made = append(w.made, slots)
	for i, p := range programs {
		if err := slots.Put(uint32(i), p.Program); err != nil {
			return nil, err
		}
		set.Members[i].Slot = i
	}
	set.Slots = slots.FD()
	return w.load(set)
}

func (w *workshop) load(set fuse.Set) (*ebpf.Program, error) {
	spec, err := set.Program()
	if err != nil {
		return nil, err
	}
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, fmt.Errorf("program of %d members: %w", len(set.Members), err)
	}
	w.made = append(w.made, prog)
	return prog, nil
}
