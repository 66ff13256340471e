// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// inBothPlaces runs a test with the daemon on the node, and with it in a container.
func inBothPlaces(t *testing.T, node *bpftest.NetNS, test func(*testing.T, *nodetest.Node)) {
	t.Helper()
	for _, place := range []struct {
		name      string
		container bool
	}{{"on the node", false}, {"in a container", true}} {
		t.Run(place.name, func(t *testing.T) {
			test(t, nodetest.Start(t, nodetest.Options{NetNS: node, Container: place.container}))
		})
	}
}

// A container goes with its mount namespace, and what it made for pods does not.
func TestContainerTakesNoVolumeWithIt(t *testing.T) {
	node, _ := bpftest.Pair(t)
	n := nodetest.Start(t, nodetest.Options{NetNS: node, Container: true})
	v := n.Publish(t, map[string]string{"image": n.Signed(t, "hooks", object("hooks")), "attach": onGetpgid})
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.DaemonPID()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), v.Target) {
		t.Errorf("the volume is mounted in the container:\n%s", mounts)
	}
	call := func(want int64) {
		t.Helper()
		if _, err := unix.Getpgid(0); err != nil {
			t.Fatal(err)
		}
		if got := hits(t, v, onTracepoint); got != want {
			t.Errorf("%d calls are counted, want %d", got, want)
		}
	}
	call(1)
	n.StopDaemon(t, syscall.SIGKILL)
	call(2)
	n.StartDaemon(t)
	call(3)
	if list := n.Run(t, "list"); !strings.Contains(list, v.Target) || !strings.Contains(list, " ok") {
		t.Errorf("the next container lists\n%s", list)
	}
	if err := v.TearDown(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(v.Target); !os.IsNotExist(err) {
		t.Errorf("after the pod is gone, its target: %v", err)
	}
}
