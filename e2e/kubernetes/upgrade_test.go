// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// The plugin is killed, and then another version takes its place, while packets flow and a pod reads their number all the
// time: not one is missed, the number never falls, and the pod runs on.
func TestPluginIsKilledAndUpgradedUnderTraffic(t *testing.T) {
	c := start(t)
	c.deploy(t, asChart(""))
	c.nothingLeft(t)
	c.namespace(t, "demo")
	c.policy(t, "demo")
	c.applyFiles(t, "testdata/watcher.yaml")
	c.awaitReady(t, "demo", "watcher")
	before := c.containerID(t, "demo", "watcher")

	stop := c.traffic()
	plugin := c.pluginPod(t)
	c.killPlugin(t)
	c.await(t, podPath(pluginNamespace, plugin), func(object json.RawMessage) (bool, error) {
		p, err := podOf(object)
		return p.ready() && p.Status.ContainerStatuses[0].RestartCount > 0, err
	})
	if got := c.pluginVersion(t, plugin); got != version {
		t.Errorf("the plugin after its death is %s, want %s", got, version)
	}

	c.kubectl(t, "set", "image", "-n", pluginNamespace, "daemonset/bpfvol", "bpfvol="+pluginRepository+":"+nextVersion)
	c.kubectl(t, "rollout", "status", "-n", pluginNamespace, "daemonset/bpfvol", "--timeout="+patience.String())
	if got := c.pluginVersion(t, c.pluginPod(t)); got != nextVersion {
		t.Errorf("the plugin after the upgrade is %s, want %s", got, nextVersion)
	}
	c.awaitDriver(t, true)
	sent, err := stop()
	if err != nil {
		t.Fatal(err)
	}

	if got := c.packets(t, "demo", "watcher"); got != sent {
		t.Errorf("the pod reads %d packets, want %d", got, sent)
	}
	if after := c.containerID(t, "demo", "watcher"); after != before {
		t.Errorf("the pod's container was %s and is %s", before, after)
	}
	reads, last := 0, uint64(0)
	for line := range strings.Lines(c.kubectl(t, "logs", "-n", "demo", "watcher")) {
		n := udpFromWorld(t, line)
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
	c.deletePod(t, "demo", "watcher")
	t.Logf("%d packets, %d numbers", sent, reads)
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

// killPlugin kills the plugin in its container, without a warning.
func (c *cluster) killPlugin(t *testing.T) {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := c.Output(exec.Command(busybox, "sh", "-c", "kill -9 $(busybox pidof bpfvol)")); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func (c *cluster) pluginPod(t *testing.T) string {
	t.Helper()
	return c.kubectl(t, "get", "pods", "-n", pluginNamespace, "-l", "app.kubernetes.io/component=node", "-o", "jsonpath={.items[0].metadata.name}")
}

// pluginVersion asks a plugin in its container.
func (c *cluster) pluginVersion(t *testing.T, pod string) string {
	t.Helper()
	words := strings.Fields(c.exec(t, pluginNamespace, pod, "/bpfvol", "--version"))
	return words[len(words)-1]
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
