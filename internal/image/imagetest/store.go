// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/internal/image"
)

// Registries lists hosts as plain HTTP registries that may be contacted.
func Registries(t testing.TB, hosts ...string) image.Registries {
	t.Helper()
	r, err := image.LoadRegistries(RegistriesFile(t, hosts...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// RegistriesFile writes a --registries file that lists hosts as plain HTTP registries.
func RegistriesFile(t testing.TB, hosts ...string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("registries:\n")
	for _, h := range hosts {
		fmt.Fprintf(&b, "- host: %q\n  plainHTTP: true\n", h)
	}
	path := filepath.Join(t.TempDir(), "registries.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Store opens an empty store that may contact hosts by plain HTTP, and closes it with the test.
func Store(t testing.TB, hosts ...string) *image.Store {
	t.Helper()
	return OpenStore(t, image.Options{Registries: Registries(t, hosts...)})
}

// OpenStore opens a store and closes it with the test. Where opts.Dir is empty the store is empty.
func OpenStore(t testing.TB, opts image.Options) *image.Store {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = filepath.Join(t.TempDir(), "oci")
	}
	s, err := image.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Reference parses a reference.
func Reference(t testing.TB, s string) image.Reference {
	t.Helper()
	ref, err := image.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}
