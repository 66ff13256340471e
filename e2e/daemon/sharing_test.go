// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// Pods of different images share eth0 in the order of their priorities: the firewall pod decides what the counter pod sees.
// Pods come and go while the daemon was killed and the registry is away.
func TestPodsShareAnInterface(t *testing.T) {
	var away atomic.Bool
	var asked atomic.Int64
	t.Setenv("BPFVOL_MEMBER_STATS", "true")
	node, peer := bpftest.Pair(t)
	rename(t, node, "veth0", "eth0")
	n := nodetest.Start(t, nodetest.Options{NetNS: node, Registry: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if away.Load() {
				asked.Add(1)
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		})
	}})
	s := &sharing{Node: n, node: node, peer: peer}
	count, firewall := n.Signed(t, "count", object("count")), n.Signed(t, "firewall", object("firewall"))
	wall := map[string]string{"image": firewall, "attach": "{program: firewall, xdp: {interface: eth0, priority: 100}}", "pullPolicy": "Never"}

	counter := n.Publish(t, map[string]string{"image": count, "attach": "{program: count, xdp: {interface: eth0, priority: 500}}"})
	s.wantOrder(t, "count")
	s.traffic(t, 3)
	s.wantCounted(t, counter, 3, 1)

	first := n.New(wall)
	s.setUp(t, first)
	s.wantOrder(t, "firewall", "count")
	s.traffic(t, 20)
	s.wantDropped(t, first, 20)
	s.wantCounted(t, counter, 3, 2) // ICMP passes the firewall, UDP does not

	// Without a daemon all goes on.
	n.StopDaemon(t, syscall.SIGKILL)
	s.traffic(t, 5)
	s.wantDropped(t, first, 25)
	s.wantCounted(t, counter, 3, 3)
	s.wantOrder(t, "firewall", "count")
	n.StartDaemon(t)
	s.wantOrder(t, "firewall", "count")

	// Without a registry, too: a pod goes, and two come whose images are on the node.
	away.Store(true)
	if err := first.TearDown(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.wantOrder(t, "count")
	s.traffic(t, 4)
	s.wantCounted(t, counter, 7, 4)
	second := n.New(wall)
	s.setUp(t, second)
	third := n.New(map[string]string{"image": count, "attach": "{program: count, xdp: {interface: eth0, priority: 50}}", "pullPolicy": "IfNotPresent"})
	s.setUp(t, third)
	s.wantOrder(t, "count", "firewall", "count")
	s.traffic(t, 6)
	s.wantCounted(t, third, 6, 1)
	s.wantDropped(t, second, 6)
	s.wantCounted(t, counter, 7, 5)
	if n := asked.Load(); n > 0 {
		t.Errorf("the registry was asked %d times while it was away", n)
	}

	// What each returned is counted from when it came.
	s.wantMembers(t, []member{
		{Program: "count", Way: "fused", Counts: counts{7, map[string]int{"pass": 7}}},
		{Program: "firewall", Way: "fused", Counts: counts{7, map[string]int{"drop": 6, "pass": 1}}},
		{Program: "count", Way: "fused", Counts: counts{12, map[string]int{"pass": 12}}},
	})
	for _, v := range []*nodetest.Volume{third, second, counter} {
		if err := v.TearDown(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(n.BPFFSDir(), "*", "*")); len(left) > 0 || err != nil {
		t.Errorf("left behind: %q, %v", left, err)
	}
	if err := peer.Ping(node.Addr); err != nil {
		t.Error(err)
	}
}

func rename(t *testing.T, ns *bpftest.NetNS, from, to string) {
	t.Helper()
	err := ns.Do(func() error {
		l, err := netlink.LinkByName(from)
		if err != nil {
			return err
		}
		return netlink.LinkSetName(l, to)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sharing is a node with a peer that sends to it.
type sharing struct {
	*nodetest.Node
	node, peer *bpftest.NetNS
}

// traffic sends datagrams to the port that the firewall closes, and one packet that it lets pass.
func (s *sharing) traffic(t *testing.T, datagrams int) {
	t.Helper()
	s.peer.SendUDP(t, s.node.Addr, datagrams)
	if err := s.peer.Ping(s.node.Addr); err != nil {
		t.Error(err)
	}
}

func (s *sharing) setUp(t *testing.T, v *nodetest.Volume) {
	t.Helper()
	if err := v.SetUp(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// wantCounted waits until the pod of a counter reads what it saw of the peer's datagrams and echo requests.
func (s *sharing) wantCounted(t *testing.T, v *nodetest.Volume, datagrams, echoes int) {
	t.Helper()
	eventually(t, map[string]int{"UDP": datagrams, "ICMP": echoes}, func() map[string]int {
		got := map[string]int{}
		for _, protocol := range []string{"UDP", "ICMP"} {
			var traffic struct{ Packets int }
			v.Value(t, "flows", fmt.Sprintf(`{"saddr":"%s","protocol":"%s"}`, s.peer.Addr, protocol), &traffic)
			got[protocol] = traffic.Packets
		}
		return got
	})
}

// wantDropped waits until the pod of a firewall reads that it dropped so many packets.
func (s *sharing) wantDropped(t *testing.T, v *nodetest.Volume, packets int) {
	t.Helper()
	eventually(t, packets, func() (sum int) {
		var perCPU []int
		v.Value(t, "dropped", "0", &perCPU)
		for _, n := range perCPU {
			sum += n
		}
		return sum
	})
}

// member is a program as status shows it.
type member struct {
	Program, Way string
	Counts       counts
}

type counts struct {
	Packets  int
	Verdicts map[string]int
}

// members are those of the only point.
func (s *sharing) members(t *testing.T) []member {
	t.Helper()
	var points []struct {
		Point   string
		Members []member
	}
	if err := json.Unmarshal([]byte(s.Run(t, "status", "-o", "json")), &points); err != nil {
		t.Fatal(err)
	}
	if len(points) != 1 || points[0].Point != "xdp eth0" {
		t.Fatalf("points are %+v, want xdp eth0", points)
	}
	return points[0].Members
}

func (s *sharing) wantOrder(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, m := range s.members(t) {
		got = append(got, m.Program)
	}
	if !slices.Equal(got, want) {
		t.Errorf("programs run in the order %q, want %q", got, want)
	}
}

func (s *sharing) wantMembers(t *testing.T, want []member) {
	t.Helper()
	eventually(t, want, func() []member { return s.members(t) })
}

// eventually waits for a value: a busy kernel takes packets from the receive queue after their sender went on.
func eventually[T any](t *testing.T, want T, get func() T) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		diff := cmp.Diff(want, get())
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			t.Errorf("(-want +got):\n%s", diff)
			return
		}
	}
}
