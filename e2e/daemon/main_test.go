// SPDX-License-Identifier: Apache-2.0

// Package daemon_test holds what the node plugin as a process promises: volumes outlive it, it outlives volumes, and
// every hook that it supports counts, or drops, what really happens.
package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

// object is the path of an object of package bpf.
func object(name string) string { return filepath.Join("..", "..", "bpf", name+".bpf.o") }

// files lists what a process has open.
func files(t *testing.T, pid int) (open []string, bpf []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed in the meantime
		}
		open = append(open, target)
		switch target {
		case "anon_inode:bpf-prog", "anon_inode:bpf-map", "anon_inode:bpf_link", "anon_inode:btf", "anon_inode:[perf_event]", "anon_inode:bpf_iter":
			bpf = append(bpf, target)
		}
	}
	return open, bpf
}
