// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// attachment is a program at a hook of veth0, and how status names the way it got there.
type attachment struct{ name, attach, mode string }

func TestNetworkHooksCountPackets(t *testing.T) {
	node, peer := bpftest.Pair(t)
	inBothPlaces(t, node, func(t *testing.T, n *nodetest.Node) {
		image := n.Signed(t, "count", object("count"))
		const packets, size = 8, 60
		for _, c := range []struct {
			attachment
			from, to *bpftest.NetNS
		}{
			{attachment{"xdp native", "{program: count, xdp: {interface: veth0, mode: native}}", "native"}, peer, node},
			{attachment{"xdp generic", "{program: count, xdp: {interface: veth0, mode: generic}}", "generic"}, peer, node},
			{attachment{"xdp auto", "{program: count, xdp: veth0}", "native"}, peer, node},
			{attachment{"tc ingress", "{program: count_out, tc: {interface: veth0, direction: ingress}}", ""}, peer, node},
			{attachment{"tc egress", "{program: count_out, tc: {interface: veth0, direction: egress}}", ""}, node, peer},
		} {
			t.Run(c.name, func(t *testing.T) {
				v := n.Publish(t, map[string]string{"image": image, "attach": c.attach, "maps": "flows"})
				if c.mode != "" {
					wantMode(t, n, c.mode)
				}
				c.from.SendUDP(t, c.to.Addr, packets)
				var got struct{ Packets, Bytes int }
				v.Value(t, "flows", fmt.Sprintf(`{"saddr":"%s","protocol":"UDP"}`, c.from.Addr), &got)
				if got.Packets != packets || got.Bytes != packets*size {
					t.Errorf("counted %+v, want %d packets of %d bytes", got, packets, size)
				}
			})
		}
	})
}

func wantMode(t *testing.T, n *nodetest.Node, want string) {
	t.Helper()
	var points []struct{ Mode string }
	if err := json.Unmarshal([]byte(n.Run(t, "status", "-o", "json")), &points); err != nil {
		t.Fatal(err)
	}
	if len(points) != 1 || points[0].Mode != want {
		t.Errorf("status shows %+v, want one point in mode %s", points, want)
	}
}

func TestNetworkHooksDropPackets(t *testing.T) {
	node, peer := bpftest.Pair(t)
	inBothPlaces(t, node, func(t *testing.T, n *nodetest.Node) {
		image := n.Signed(t, "drop", object("drop"))
		for _, c := range []attachment{
			{"xdp native", "{program: drop, xdp: {interface: veth0, mode: native}}", ""},
			{"xdp generic", "{program: drop, xdp: {interface: veth0, mode: generic}}", ""},
			{"tc ingress", "{program: drop_tc, tc: {interface: veth0, direction: ingress}}", ""},
			{"tc egress", "{program: drop_tc, tc: {interface: veth0, direction: egress}}", ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				v := n.Publish(t, map[string]string{"image": image, "attach": c.attach})
				if err := peer.Ping(node.Addr); !errors.Is(err, bpftest.ErrNoReply) {
					t.Errorf("ping while the program drops: %v, want %v", err, bpftest.ErrNoReply)
				}
				if err := v.TearDown(context.WithoutCancel(t.Context())); err != nil {
					t.Fatal(err)
				}
				if err := peer.Ping(node.Addr); err != nil {
					t.Errorf("after the pod is gone: %v", err)
				}
			})
		}
	})
}
