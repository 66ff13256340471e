// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// What is counted of a program goes on when others come and go, by whoever, and when the node plugin starts again.
func TestCountsGoOnWhenMembersComeAndGo(t *testing.T) {
	f := newFixture(t)
	f.opts.MemberStats = true
	f.restart(t)
	node, peer := bpftest.Pair(t)
	counter := f.request(t, f.signed(t, "count", bpf.Count()), "{program: count, xdp: veth0}")
	firewall := f.request(t, f.signed(t, "firewall", bpf.Firewall()), "{program: firewall, xdp: {interface: veth0, priority: 100}}")
	third := f.request(t, f.signed(t, "pass", bpf.Pass()), "{program: pass, xdp: {interface: veth0, priority: 10}}")
	f.publishIn(t, node, counter)
	peer.SendUDP(t, node.Addr, 3)
	f.wantCounts(t, map[string]dispatcher.Counts{"count": {Packets: 3, Verdicts: map[string]uint64{"pass": 3}}})

	f.publishIn(t, node, firewall)
	peer.SendUDP(t, node.Addr, 4) // dropped
	if err := peer.Ping(node.Addr); err != nil {
		t.Fatal(err)
	}
	f.wantCounts(t, map[string]dispatcher.Counts{
		"firewall": {Packets: 5, Verdicts: map[string]uint64{"drop": 4, "pass": 1}},
		"count":    {Packets: 4, Verdicts: map[string]uint64{"pass": 4}},
	})

	f.publishIn(t, node, third)
	peer.SendUDP(t, node.Addr, 2)
	f.wantCounts(t, map[string]dispatcher.Counts{
		"pass":     {Packets: 2, Verdicts: map[string]uint64{"pass": 2}},
		"firewall": {Packets: 7, Verdicts: map[string]uint64{"drop": 6, "pass": 1}},
		"count":    {Packets: 4, Verdicts: map[string]uint64{"pass": 4}},
	})

	// A command that was told nothing of counting does not end it.
	command, err := Open(Options{StateDir: f.opts.StateDir, BPFFSDir: f.opts.BPFFSDir, TargetRoot: f.opts.TargetRoot})
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Unpublish(f.ctx, third.VolumeID, third.Target); err != nil {
		t.Fatal(err)
	}
	f.restart(t)
	peer.SendUDP(t, node.Addr, 1)
	f.wantCounts(t, map[string]dispatcher.Counts{
		"firewall": {Packets: 8, Verdicts: map[string]uint64{"drop": 7, "pass": 1}},
		"count":    {Packets: 4, Verdicts: map[string]uint64{"pass": 4}},
	})

	// Who comes back is new.
	f.publishIn(t, node, third)
	f.wantCounts(t, map[string]dispatcher.Counts{
		"pass":     {Verdicts: map[string]uint64{}},
		"firewall": {Packets: 8, Verdicts: map[string]uint64{"drop": 7, "pass": 1}},
		"count":    {Packets: 4, Verdicts: map[string]uint64{"pass": 4}},
	})

	// The node plugin without the option ends it.
	f.opts.MemberStats = false
	f.restart(t)
	f.wantCounts(t, map[string]dispatcher.Counts{})
	wantOrder(t, f, node, "pass fused", "firewall fused", "count fused")
}

// wantCounts waits until just so much is counted of every program.
func (f *fixture) wantCounts(t *testing.T, want map[string]dispatcher.Counts) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		points, err := f.Status()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]dispatcher.Counts{}
		for _, p := range points {
			for _, m := range p.Members {
				if m.Counts != nil {
					got[m.Program] = *m.Counts
				}
			}
		}
		diff := cmp.Diff(want, got)
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("counts (-want +got):\n%s", diff)
		}
	}
}
