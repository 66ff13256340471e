// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func BenchmarkParse(b *testing.B) {
	asked := volume.Spec{Attach: attach(b, "{program: on_exec, tracepoint: syscalls/sys_enter_execve}")}
	object := bpf.Count()
	b.ReportAllocs()
	for b.Loop() {
		mustParse(b, object, asked)
	}
}

func BenchmarkParseAndLoad(b *testing.B) {
	bpftest.Root(b)
	asked := volume.Spec{Attach: attach(b, "{program: on_exec, tracepoint: syscalls/sys_enter_execve}")}
	object, cache := bpf.Count(), btf.NewCache()
	b.ReportAllocs()
	for b.Loop() {
		c, err := Load(b.Context(), mustParse(b, object, asked), Options{Types: cache})
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkBareLoad is the floor of the one above: cilium/ebpf loading all of the same object.
func BenchmarkBareLoad(b *testing.B) {
	bpftest.Root(b)
	object, cache := bpf.Count(), btf.NewCache()
	for b.Loop() {
		spec, err := readSpec(object)
		if err != nil {
			b.Fatal(err)
		}
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: cache})
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

func BenchmarkTypesBTF(b *testing.B) {
	o := mustParse(b, bpf.Types(), volume.Spec{Attach: attach(b, "{program: touch, xdp: eth0}")})
	for b.Loop() {
		if _, err := o.TypesBTF(); err != nil {
			b.Fatal(err)
		}
	}
}
