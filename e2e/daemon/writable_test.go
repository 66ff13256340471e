// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

// The program goes on counting from what the pod wrote. What a container without privilege may do there, and a real runtime's
// mounts of it, package podfs shows.
func TestPodWritesWhatItsProgramReads(t *testing.T) {
	inBothPlaces(t, nil, func(t *testing.T, n *nodetest.Node) {
		v := n.Publish(t, map[string]string{
			"image":  n.Signed(t, "hooks", object("hooks")),
			"attach": onGetpgid,
			"maps":   "hits:rw, cookies",
		})
		if _, err := ebpf.LoadPinnedMap(filepath.Join(v.Target, "maps", "hits"), nil); !errors.Is(err, unix.EROFS) {
			t.Errorf("maps/hits for writing: %v, want EROFS", err)
		}
		if _, err := ebpf.LoadPinnedMap(filepath.Join(v.Target, "rw", "cookies"), nil); !errors.Is(err, unix.ENOENT) {
			t.Errorf("rw/cookies, which was not asked for: %v, want ENOENT", err)
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(v.Target, "rw", "hits"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Put(uint32(onTracepoint), uint64(1_000_000)); err != nil {
			t.Fatal(err)
		}
		const calls = 25
		for range calls {
			if _, err := unix.Getpgid(0); err != nil {
				t.Fatal(err)
			}
		}
		if got := hits(t, v, onTracepoint); got != 1_000_000+calls {
			t.Errorf("the tracepoint counted to %d from 1000000, want %d", got, 1_000_000+calls)
		}
	})
}
