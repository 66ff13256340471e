// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestMain(m *testing.M) { bpftest.Main(m) }

// types is the kernel's BTF for all tests, as in the daemon.
var types = btf.NewCache()

// attach is the attribute of that name.
func attach(t testing.TB, yaml string) []volume.Attach {
	t.Helper()
	a, err := volume.ParseAttach(yaml)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustParse(t testing.TB, elf []byte, asked volume.Spec) *Object {
	t.Helper()
	o, err := parse(elf, asked)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func load(t testing.TB, o *Object) *Collection {
	t.Helper()
	bpftest.Root(t)
	c, err := Load(t.Context(), o, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// run runs an XDP program once on an empty packet and returns its verdict.
func run(t testing.TB, prog *ebpf.Program) uint32 {
	t.Helper()
	verdict, err := prog.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}

func mapNames(o *Object) (shown, hidden []string) {
	for _, m := range o.Maps() {
		if m.Shown {
			shown = append(shown, m.Name)
		} else {
			hidden = append(hidden, m.Name)
		}
	}
	return shown, hidden
}

// wantError checks the kind and the whole text of an error.
func wantError(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got error %v, want one that is %v", err, kind)
	}
	if err.Error() != text {
		t.Errorf("got  %s\nwant %s", err, text)
	}
}

// ciliumDir is where the module cache holds cilium/ebpf, with objects that its authors made.
func ciliumDir(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cilium/ebpf").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return files
}
