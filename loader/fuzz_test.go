// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"testing"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Any bytes parse, or are refused by an error of this package. Nothing reaches the kernel.
func FuzzParse(f *testing.F) {
	for _, object := range [][]byte{bpf.Count(), bpf.Pass(), bpf.PassBigEndian(), bpf.Hooks(), bpf.Two(), bpf.Pinned(), bpf.Types(), bpf.Variables()} {
		f.Add(object)
	}
	for _, file := range foreignObjects(f) {
		object, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(object)
	}
	f.Fuzz(func(t *testing.T, object []byte) {
		summary, err := Inspect(object)
		if err != nil {
			refusal(t, err)
			return
		}
		if o, err := parse(object, volume.Spec{}); err != nil {
			refusal(t, err)
		} else {
			exercise(t, o)
		}
		if len(summary.Programs) == 0 {
			return
		}
		attach := []volume.Attach{{Program: summary.Programs[0].Name, Hook: &volume.XDP{}}}
		for _, v := range summary.Variables {
			for _, value := range []any{int64(-1), true, "text", []any{int64(1), []any{"x"}}, map[string]any{"from": int64(1), "a": "b"}} {
				if _, err := parse(object, volume.Spec{Attach: attach, Variables: map[string]any{v.Name: value}}); err != nil {
					refusal(t, err)
				}
			}
		}
	})
}

func refusal(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNotFound) {
		t.Errorf("error of no kind: %v", err)
	}
}

// exercise asks an object everything that needs no kernel.
func exercise(t *testing.T, o *Object) {
	t.Helper()
	o.Attach()
	o.Facts()
	for _, m := range o.Maps() {
		if m.Shown && !isName(m.Name) {
			t.Errorf("map %q would be a file", m.Name)
		}
	}
	if _, err := o.TypesBTF(); err != nil {
		refusal(t, err)
	}
}
