// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"strings"
	"testing"
)

// A pod with the least rights there are, in a user namespace and with a group of its own, writes a map of its volume, and the
// program goes on from what it wrote. It changes nothing else.
func TestPodWritesAMap(t *testing.T) {
	c := start(t)
	c.deploy(t, asChart("seccompProfile: {install: true}"))
	c.nothingLeft(t)
	c.example(t, "writable-map.yaml")
	c.awaitReady(t, "writable", "flows")
	const before, packets = 1_000_000, 100
	c.send(t, packets)
	if got := c.packets(t, "writable", "flows"); got != before+packets {
		t.Errorf("the pod reads %d packets, want %d", got, before+packets)
	}
	if got := c.exec(t, "writable", "flows", "ls", "/bpf/rw"); got != "flows\n" {
		t.Errorf("files in rw: %q", got)
	}
	for _, attempt := range []string{"rm /bpf/rw/flows", "mv /bpf/rw/flows /bpf/rw/x", "mkdir /bpf/rw/x", "rm /bpf/maps/flows"} {
		got := c.exec(t, "writable", "flows", "sh", "-c", attempt+" 2>&1; true")
		if !strings.Contains(got, "Read-only file system") {
			t.Errorf("%s: %q", attempt, got)
		}
	}
}
