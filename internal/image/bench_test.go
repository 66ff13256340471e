// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"fmt"
	"testing"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// BenchmarkWarmObject is what a publish spends here when everything is cached.
func BenchmarkWarmObject(b *testing.B) {
	reg := imagetest.Start(b)
	ref := signed(b, reg)
	store := imagetest.Store(b, reg.Host)
	for b.Loop() {
		benchmarkOpen(b, store, ref)
	}
}

// BenchmarkColdObject is the same with an empty cache and a registry on loopback.
func BenchmarkColdObject(b *testing.B) {
	reg := imagetest.Start(b)
	ref := signed(b, reg)
	hosts := imagetest.Registries(b, reg.Host)
	for b.Loop() {
		store, err := image.Open(image.Options{Dir: b.TempDir(), Registries: hosts})
		if err != nil {
			b.Fatal(err)
		}
		benchmarkOpen(b, store, ref)
		if err := store.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuild writes an image of one object.
func BenchmarkBuild(b *testing.B) {
	store := imagetest.Store(b)
	ref := imagetest.Reference(b, "ghcr.io/acme/count:v1")
	objects := []image.BuildInput{{Name: "count.o", Arch: "amd64", ELF: bpf.Count()}}
	for b.Loop() {
		if _, err := store.Build(b.Context(), ref, objects, image.BuildOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkOpen(b *testing.B, store *image.Store, ref image.Reference) {
	b.Helper()
	root, err := store.Resolve(b.Context(), ref, image.PullOptions{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := root.Signatures(b.Context(), false); err != nil {
		b.Fatal(err)
	}
	if _, err := root.Object(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWarmObjectAmongMany is BenchmarkWarmObject in a cache that has seen 500 images.
func BenchmarkWarmObjectAmongMany(b *testing.B) {
	reg := imagetest.Start(b)
	ref := signed(b, reg)
	store := imagetest.Store(b, reg.Host)
	for i := range 500 {
		other := imagetest.Reference(b, fmt.Sprintf("ghcr.io/acme/count:v%d", i))
		objects := []image.BuildInput{{Name: "count.o", Arch: "amd64", ELF: fmt.Appendf(bpf.Pass(), "%d", i)}}
		if _, err := store.Build(b.Context(), other, objects, image.BuildOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		benchmarkOpen(b, store, ref)
	}
}
