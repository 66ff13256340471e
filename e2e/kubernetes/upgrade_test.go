// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// The plugin is killed, upgraded and set back as docs/operations.md says, while packets flow and a pod reads their number all
// the time: not one is missed, the number never falls, and the pod runs on.
func TestPluginIsKilledAndUpgradedUnderTraffic(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.counter(t)
	before := c.containerID(t, "demo", "counter")

	numbers := c.readFlows(t, "demo", "counter")
	stop := c.traffic()
	plugin := c.pluginPod(t)
	c.killPlugin(t)
	c.await(t, podPath(pluginNamespace, plugin), func(object json.RawMessage) (bool, error) {
		p, err := podOf(object)
		return p.ready() && p.Status.ContainerStatuses[0].RestartCount > 0, err
	})
	runs := func(want string) {
		t.Helper()
		if got := c.pluginVersion(t, c.pluginPod(t)); got != want {
			t.Errorf("the plugin is %s, want %s", got, want)
		}
	}
	runs(version)
	c.awaitDriver(t, true)

	c.upgrade(t, "image.tag="+nextVersion)
	runs(nextVersion)
	c.rollback(t)
	runs(version)

	sent, err := stop()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.packets(t, "demo", "counter"); got != sent {
		t.Errorf("the pod reads %d packets, want %d", got, sent)
	}
	if after := c.containerID(t, "demo", "counter"); after != before {
		t.Errorf("the pod's container was %s and is %s", before, after)
	}
	reads, last := 0, uint64(0)
	for _, n := range numbers() {
		if n < last {
			t.Errorf("the pod read %d and then %d packets", last, n)
		}
		if n > last {
			reads++
		}
		last = n
	}
	if reads < 20 {
		t.Errorf("the number rose %d times while the pod read it: that shows little", reads)
	}
	t.Logf("%d packets, %d numbers", sent, reads)
}

// readFlows reads the number of packets from the world in a pod, ten times a second until stop is called, which returns them.
func (c *cluster) readFlows(t *testing.T, namespace, pod string) (stop func() (numbers []uint64)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	lines := make(chan string, 1)
	go func() {
		out, _ := c.TryKubectl(during{t, ctx}, "", "exec", "-n", namespace, pod, "--", "sh", "-c", "while :; do cat /bpf/json/flows; sleep 0.1; done")
		lines <- out
	}()
	return func() (numbers []uint64) {
		cancel()
		for line := range strings.Lines(<-lines) {
			if !strings.HasSuffix(line, "\n") {
				break // the last one may have been cut
			}
			if n := udpFromWorld(t, line); n > 0 {
				numbers = append(numbers, n)
			}
		}
		return numbers
	}
}

// traffic sends packets from the world until stop is called, which returns how many.
func (c *cluster) traffic() (stop func() (sent uint64, err error)) {
	var sending sync.WaitGroup
	var sent uint64
	var err error
	end := make(chan struct{})
	sending.Go(func() {
		const burst = 2 // much less than what an interface queues while the machine is busy
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-end:
				tick.Stop()
				return
			case <-tick.C:
			}
			if err = c.World.SendUDP(burst); err != nil {
				return
			}
			sent += burst
		}
	})
	return func() (uint64, error) {
		close(end)
		sending.Wait()
		return sent, err
	}
}

func (c *cluster) containerID(t *testing.T, namespace, pod string) string {
	t.Helper()
	var id string
	c.await(t, podPath(namespace, pod), func(object json.RawMessage) (bool, error) {
		p, err := podOf(object)
		if err != nil || !p.ready() {
			return false, err
		}
		id = p.Status.ContainerStatuses[0].ContainerID
		return true, nil
	})
	return id
}

// podStatus is what tests look at of a pod.
type podStatus struct {
	object json.RawMessage
	Status struct {
		ContainerStatuses []struct {
			ContainerID  string
			RestartCount int
		}
	}
}

func podOf(object json.RawMessage) (p podStatus, err error) {
	if object == nil {
		return p, errors.New("there is no such pod")
	}
	p.object = object
	return p, json.Unmarshal(object, &p)
}

func (p podStatus) ready() bool {
	ready, err := k8s.Condition("Ready")(p.object)
	return err == nil && ready && len(p.Status.ContainerStatuses) > 0
}

// Without the driver nothing could end a pod that has a volume of it, so it is not taken away. When the pod has gone it is, and
// nothing of it is left on the node.
func TestUninstallIsRefusedWhilePodsHaveVolumes(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	t.Run("refused", func(t *testing.T) {
		c.counter(t)
		if out, err := c.tryHelm(t, "uninstall", "bpfvol", "--namespace", pluginNamespace); err == nil {
			t.Errorf("uninstalled beside a pod with a volume: %s", out)
		}
		log := c.kubectl(t, "logs", "-n", pluginNamespace, "job/bpfvol-uninstall")
		for _, want := range []string{"demo       counter  node1  bpf", "1 pods have volumes of csi.bpfvol.io", "delete them first"} {
			if !strings.Contains(log, want) {
				t.Errorf("no %q in the log of the job:\n%s", want, log)
			}
		}
		// It goes on as if nothing had been asked.
		c.send(t, 3)
		if got := c.packets(t, "demo", "counter"); got != 3 {
			t.Errorf("the pod reads %d packets, want 3", got)
		}
	})
	c.uninstall(t)
}
