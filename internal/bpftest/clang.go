// SPDX-License-Identifier: Apache-2.0

package bpftest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Clang compiles C source to a BPF object for this machine's byte order, with BTF. Tests that can use a committed
// object of package bpf should: they run without a compiler.
func Clang(t testing.TB, source string, args ...string) []byte {
	t.Helper()
	args = append([]string{"-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v3", "-I/usr/include/" + multiarch(t)}, args...)
	// Not to /dev/stdout: when it fails, clang removes what it was to write, which root may do.
	file := filepath.Join(t.TempDir(), "object.o")
	cmd := exec.Command("clang", append(args, "-c", "-x", "c", "-o", file, "-")...)
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("clang: %v; install clang and libbpf-dev\n%s", err, out)
	}
	object, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return object
}

// multiarch is Debian's name for the directory of the machine's own headers, where asm/types.h is.
func multiarch(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("clang", "-print-multiarch").Output()
	if err != nil {
		t.Fatalf("clang: %v; install clang and libbpf-dev", err)
	}
	return string(bytes.TrimSpace(out))
}
