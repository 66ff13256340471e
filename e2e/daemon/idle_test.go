// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestIdleDaemonHoldsNoBPFObject(t *testing.T) {
	node, _ := bpftest.Pair(t)
	n := nodetest.Start(t, nodetest.Options{NetNS: node})
	n.Publish(t, map[string]string{"image": n.Signed(t, "pass", object("pass")), "attach": "{program: pass, xdp: veth0}"})
	n.Publish(t, map[string]string{"image": n.Signed(t, "hooks", object("hooks")), "attach": onGetpgid})
	if _, bpf := files(t, n.DaemonPID()); len(bpf) > 0 {
		t.Errorf("the daemon holds %v", bpf)
	}
}

func TestManyVolumesCostTheDaemonNoDescriptor(t *testing.T) {
	const volumes = 200
	n := nodetest.Start(t, nodetest.Options{})
	image := n.Signed(t, "hooks", object("hooks"))
	publish := func() {
		v := n.New(map[string]string{"image": image, "attach": "{program: on_raw_tracepoint, rawTracepoint: sys_enter}"})
		if err := v.SetUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := v.TearDown(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	publish()
	before, _ := files(t, n.DaemonPID())
	for range volumes {
		publish()
	}
	after, bpf := files(t, n.DaemonPID())
	// Idle connections to the registry end by themselves.
	for deadline := time.Now().Add(2 * time.Second); len(after) > len(before) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
		after, bpf = files(t, n.DaemonPID())
	}
	if len(after) > len(before) || len(bpf) > 0 {
		t.Errorf("before: %v\nafter %d volumes: %v", before, volumes, after)
	}
}
