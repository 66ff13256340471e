// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestTypesBTFStandsAlone(t *testing.T) {
	for name, object := range map[string][]byte{"types": bpf.Types(), "variables": bpf.Variables(), "count": bpf.Count()} {
		spec := volume.Spec{Attach: attach(t, map[string]string{
			"types": "{program: touch, xdp: eth0}", "variables": "{program: report, xdp: eth0}", "count": "{program: count, xdp: eth0}"}[name])}
		blob, err := mustParse(t, object, spec).TypesBTF()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "types.btf")
		if err := os.WriteFile(file, blob, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := btf.LoadSpec(file); err != nil {
			t.Errorf("%s: cilium/ebpf: %v", name, err)
		}
		out, err := exec.Command("bpftool", "btf", "dump", "file", file).CombinedOutput()
		if err != nil {
			t.Errorf("%s: bpftool: %v\n%s", name, err, out)
		}
		want := map[string]string{"types": "STRUCT 'shapes'", "variables": "DATASEC '.rodata'", "count": "STRUCT 'traffic'"}[name]
		if !strings.Contains(string(out), want) {
			t.Errorf("%s: bpftool shows no %s:\n%s", name, want, out)
		}
	}
}

// The blob says where in its section a variable is, which the BTF of an ELF leaves to relocations.
func TestTypesBTFHasTheLayoutOfDataSections(t *testing.T) {
	blob, err := mustParse(t, bpf.Variables(), volume.Spec{Attach: attach(t, "{program: report, xdp: eth0}")}).TypesBTF()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "types.btf")
	if err := os.WriteFile(file, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	spec, err := btf.LoadSpec(file)
	if err != nil {
		t.Fatal(err)
	}
	var section *btf.Datasec
	if err := spec.TypeByName(".rodata", &section); err != nil {
		t.Fatal(err)
	}
	offsets := map[uint32]bool{}
	for _, v := range section.Vars {
		offsets[v.Offset] = true
	}
	if section.Size == 0 || len(offsets) != len(section.Vars) {
		t.Errorf("size %d, offsets %v of %d variables", section.Size, offsets, len(section.Vars))
	}
}

func TestObjectWithoutBTFHasNoTypes(t *testing.T) {
	object := bpftest.Clang(t, `__attribute__((section("xdp"))) int p(void *ctx) { return 2; }`, "-g0")
	blob, err := mustParse(t, object, volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")}).TypesBTF()
	if blob != nil || err != nil {
		t.Errorf("got %d bytes, %v", len(blob), err)
	}
}
