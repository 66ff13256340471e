// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// Pods that mount one PersistentVolume read what one program counts. They come and go under traffic, which notices nothing.
func TestPodsShareAPersistentVolume(t *testing.T) {
	node, peer := bpftest.Pair(t)
	inBothPlaces(t, node, func(t *testing.T, n *nodetest.Node) {
		attributes := map[string]string{
			"image":  n.Signed(t, "count", object("count")),
			"attach": "[{program: count, xdp: veth0}, {program: on_exec, tracepoint: syscalls/sys_enter_getpgid}]",
		}
		pod := func(name string, group int64) *nodetest.Volume {
			return n.NewFor(
				kubelet.Pod{Namespace: "e2e", Name: name, UID: "00000000-0000-4000-8000-0000000000" + name, ServiceAccount: "app", FSGroup: &group},
				kubelet.Volume{Name: "pvc-1", Attributes: attributes, Persistent: true, Handle: "counters"},
			)
		}
		first, second := pod("01", 2001), pod("02", 2002)
		setUp := func(v *nodetest.Volume) {
			t.Helper()
			if err := node.Do(func() error { return v.SetUp(t.Context()) }); err != nil {
				t.Fatal(err)
			}
		}
		tearDown := func(v *nodetest.Volume) {
			t.Helper()
			if err := v.TearDown(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		packets := func(v *nodetest.Volume) int64 {
			t.Helper()
			var traffic struct{ Packets int64 }
			v.Value(t, "flows", fmt.Sprintf(`{"saddr":"%s","protocol":"UDP"}`, peer.Addr), &traffic)
			return traffic.Packets
		}
		setUp(first)
		peer.SendUDP(t, node.Addr, 1) // two at once could both be the first of their flow
		eventually(t, 1, func() int64 { return packets(first) })
		stream := startStream(t, node, peer)
		stream.wait(t, 1000)
		alone := running(t, n)
		counted := packets(first)

		setUp(second)
		setUp(second) // kubelet restarts
		if now := running(t, n); now != alone {
			t.Errorf("what runs was %s, and is with a second pod %s", alone, now)
		}
		for v, group := range map[*nodetest.Volume]uint32{first: 2001, second: 2002} {
			var st unix.Stat_t
			if err := unix.Stat(v.Target, &st); err != nil || st.Gid != group || st.Mode&0o777 != 0o750 {
				t.Errorf("the volume is of group %d with mode %o, want %d with 750: %v", st.Gid, st.Mode&0o777, group, err)
			}
		}
		stream.wait(t, 1000)
		if now := packets(second); now < counted+1000 {
			t.Errorf("the second pod reads %d packets, the first one had read %d before 1000 more", now, counted)
		} else {
			counted = now
		}

		n.StopDaemon(t, syscall.SIGKILL)
		stream.wait(t, 1000)
		n.StartDaemon(t)
		tearDown(first)
		tearDown(first)
		if _, err := os.Stat(first.Target); err == nil {
			t.Error("the first pod's target is still there")
		}
		if now := running(t, n); now != alone {
			t.Errorf("what runs was %s, and is without the first pod %s", alone, now)
		}
		stream.wait(t, 1000)
		if now := packets(second); now < counted+2000 {
			t.Errorf("the second pod reads %d packets, and read %d before 2000 more", now, counted)
		}
		setUp(first) // and it comes back
		tearDown(second)
		sent, received := stream.stop(t)
		if sent != received {
			t.Errorf("%d packets sent, %d received", sent, received)
		}
		if now := packets(first); now != 1+sent {
			t.Errorf("of %d packets %d were counted", 1+sent, now)
		}
		tearDown(first)
		if left, err := filepath.Glob(filepath.Join(n.BPFFSDir(), "*", "*")); len(left) > 0 || err != nil {
			t.Errorf("left behind: %q, %v", left, err)
		}
	})
}

// running is what runs, as bpfvol status says it, without who uses it.
func running(t *testing.T, n *nodetest.Node) string {
	t.Helper()
	var points []struct {
		Point   string
		Program struct{ ID int }
		Members []struct{ ProgramID, LinkID int }
	}
	if err := json.Unmarshal([]byte(n.Run(t, "status", "-o", "json")), &points); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(points)
}
