// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// The whole way, once by each deployment: kubelet publishes an inline volume, its program counts packets of the node's
// interface, and an unprivileged container reads the count by cat.
func TestPodReadsItsVolume(t *testing.T) {
	for name, how := range map[string]deployment{"process": asProcess(new(process)), "DaemonSet": asDaemonSet} {
		t.Run(name, func(t *testing.T) {
			c := start(t)
			c.deploy(t, how)
			c.nothingLeft(t)
			c.counter(t)
			const packets = 100
			c.send(t, packets)
			if got := c.packets(t, "demo", "counter"); got != packets {
				t.Errorf("the pod reads %d packets, want %d", got, packets)
			}
			c.deletePod(t, "demo", "counter")
		})
	}
}

// packets is what a pod reads of the UDP packets that came from the world.
func (c *cluster) packets(t *testing.T, namespace, pod string) uint64 {
	t.Helper()
	var sum uint64
	for line := range strings.Lines(c.exec(t, namespace, pod, "cat", "/bpf/json/flows")) {
		sum += udpFromWorld(t, line)
	}
	return sum
}

// udpFromWorld is the number of UDP packets from the world that a line of json/flows tells of.
func udpFromWorld(t *testing.T, line string) uint64 {
	t.Helper()
	var entry struct {
		Key   struct{ Saddr, Protocol string }
		Value struct{ Packets uint64 }
	}
	if err := json.Unmarshal([]byte(line), &entry); err != nil {
		t.Fatalf("json/flows: %q: %v", line, err)
	}
	if entry.Key.Saddr != "10.250.0.1" || entry.Key.Protocol != "UDP" {
		return 0
	}
	return entry.Value.Packets
}
