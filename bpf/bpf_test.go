// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestMain(m *testing.M) { bpftest.Main(m) }

func TestObjectsAreCurrent(t *testing.T) {
	for _, dir := range []string{".", "members"} {
		t.Run(dir, func(t *testing.T) { testObjectsAreCurrent(t, dir) })
	}
}

func testObjectsAreCurrent(t *testing.T, dir string) {
	sum, err := os.ReadFile(filepath.Join(dir, "objects.sum"))
	if err != nil {
		t.Fatal(err)
	}
	compiler, hashes, _ := strings.Cut(string(sum), "\n")
	sources, err := filepath.Glob(filepath.Join(dir, "src/*.[ch]"))
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&want, "%x  %s\n", sha256.Sum256(text), filepath.Base(source))
	}
	if hashes != want.String() {
		t.Fatal("a C source changed after the objects were made; run go generate ./bpf/...")
	}

	t.Run("byte for byte", func(t *testing.T) {
		version, err := exec.Command("clang", "--version").Output()
		if err != nil || !bytes.Contains(version, []byte(strings.TrimPrefix(compiler, "clang "))) {
			t.Skipf("the objects were made by %s; here is %q (%v)", compiler, version, err)
		}
		if out, err := exec.Command("go", "version").CombinedOutput(); err != nil {
			t.Skipf("no Go here to run generate.go: %v: %s", err, out)
		}
		generator, err := filepath.Abs("generate.go")
		if err != nil {
			t.Fatal(err)
		}
		made := t.TempDir()
		generate := exec.Command("go", "run", generator, "-o", made)
		generate.Dir = dir
		if out, err := generate.CombinedOutput(); err != nil {
			t.Fatalf("generate: %v\n%s", err, out)
		}
		objects, err := filepath.Glob(filepath.Join(dir, "*.bpf.o"))
		if err != nil {
			t.Fatal(err)
		}
		for _, object := range objects {
			got, err := os.ReadFile(object)
			if err != nil {
				t.Fatal(err)
			}
			again, err := os.ReadFile(filepath.Join(made, filepath.Base(object)))
			if err != nil {
				t.Error(err)
			} else if !bytes.Equal(got, again) {
				t.Errorf("%s differs from what go generate ./bpf/... makes", object)
			}
		}
	})
}

func TestKernelLoadsObjects(t *testing.T) {
	bpftest.Root(t)
	for name, object := range map[string]func() []byte{
		"count": bpf.Count, "counter": bpf.Counter, "pass": bpf.Pass, "drop": bpf.Drop, "firewall": bpf.Firewall, "hooks": bpf.Hooks, "two": bpf.Two, "types": bpf.Types,
		"variables": bpf.Variables, "sections": bpf.Sections, "network": bpf.Network,
	} {
		t.Run(name, func(t *testing.T) {
			spec := parse(t, object())
			if m := spec.Maps["ringbuf_unsized"]; m != nil {
				m.MaxEntries = uint32(os.Getpagesize())
			}
			if name == "network" {
				bpftest.SkipOnOldKernel(t, "6.7", "netkit and netfilter programs")
			}
			coll, err := ebpf.NewCollection(spec)
			bpftest.SkipIfForbidden(t, err)
			if err != nil {
				t.Fatalf("%+v", err)
			}
			coll.Close()
		})
	}
}

func TestPinnedAsksForPinByName(t *testing.T) {
	if got := parse(t, bpf.Pinned()).Maps["packets"].Pinning; got != ebpf.PinByName {
		t.Errorf("got %v, want %v", got, ebpf.PinByName)
	}
}

func TestVerifierRejectsWithAHugeLog(t *testing.T) {
	bpftest.Root(t)
	coll, err := ebpf.NewCollectionWithOptions(parse(t, bpf.Rejected()), ebpf.CollectionOptions{})
	if err == nil {
		coll.Close()
		t.Fatal("the kernel took the program")
	}
	var verifier *ebpf.VerifierError
	if !errors.As(err, &verifier) {
		t.Fatalf("got %v, want the verifier's answer", err)
	}
	if size := len(strings.Join(verifier.Log, "\n")); size < 1<<20 {
		t.Errorf("log has %d bytes, want more than 1 MiB", size)
	}
}

func TestBigEndianObjectIsOne(t *testing.T) {
	const dataBigEndian = 2 // ELFDATA2MSB, byte EI_DATA of the ELF header
	if got := bpf.PassBigEndian()[5]; got != dataBigEndian {
		t.Errorf("got byte order %d, want %d", got, dataBigEndian)
	}
}

func TestCallersCannotChangeObjects(t *testing.T) {
	bpf.Pass()[0] = 0
	if bpf.Pass()[0] == 0 {
		t.Error("one caller's change shows in the next one's bytes")
	}
}

func parse(t *testing.T, object []byte) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}
