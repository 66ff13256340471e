// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// kubelet ends and comes back. The pod and its programs do not notice, kubelet knows the volume again, and a pod that is
// deleted after that, or was while kubelet was away, leaves nothing.
func TestKubeletRestarts(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		c.counter(t)
		before := c.containerID(t, "demo", "counter")
		c.send(t, 10)
		c.StopComponent(k8s.Kubelet, signal)
		c.send(t, 10)
		if err := c.StartComponent(k8s.Kubelet); err != nil {
			t.Fatal(err)
		}
		soon(t, "kubelet knows the volume", func() error { return c.knowsVolumes(t, 1) })
		c.awaitDriver(t, true)
		c.send(t, 10)
		if got := c.packets(t, "demo", "counter"); got != 30 {
			t.Errorf("after %s the pod reads %d packets, want 30", signal, got)
		}
		if after := c.containerID(t, "demo", "counter"); after != before {
			t.Errorf("after %s the pod's container is %s, and was %s", signal, after, before)
		}
		c.deletePod(t, "demo", "counter")
	}

	c.counter(t)
	c.StopComponent(k8s.Kubelet, syscall.SIGKILL)
	c.kubectl(t, "delete", "pod", "-n", "demo", "counter", "--grace-period=0", "--force")
	if err := c.StartComponent(k8s.Kubelet); err != nil {
		t.Fatal(err)
	}
	// nothingLeft has the say
}

// knowsVolumes has no error if kubelet says that so many volumes of the driver are mounted.
func (c *cluster) knowsVolumes(t *testing.T, want int) error {
	t.Helper()
	status, metrics := c.Do(outlive(t), http.MethodGet, "/api/v1/nodes/"+k8s.NodeName+"/proxy/metrics", nil)
	if status != http.StatusOK {
		return fmt.Errorf("kubelet's metrics: status %d", status)
	}
	line := fmt.Sprintf("volume_manager_total_volumes{plugin_name=\"kubernetes.io/csi:csi.bpfvol.io\",state=\"actual_state_of_world\"} %d\n", want)
	if !strings.Contains(string(metrics), line) {
		return errors.New("kubelet's metrics have no line " + line)
	}
	return nil
}

// failedTearDowns is how often kubelet could not take a volume away.
func (c *cluster) failedTearDowns(t *testing.T) int {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(c.Dir(), "kubelet.log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(log), "UnmountVolume.TearDown failed")
}

// Whatever happens to a pod while the node has no plugin, nothing is left when it is back; nor when a pod is deleted by force
// beside it.
func TestPodIsDeletedWhileThePluginIsDown(t *testing.T) {
	for _, test := range []struct {
		name   string
		delete []string
		down   bool
	}{
		{"with a grace period", []string{"--wait=false"}, true},
		{"by force", []string{"--grace-period=0", "--force"}, true},
		{"by force, the plugin being there", []string{"--grace-period=0", "--force"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t)
			c.nothingLeft(t)
			c.counter(t)
			deletePod := func() { c.kubectl(t, append([]string{"delete", "pod", "-n", "demo", "counter"}, test.delete...)...) }
			if !test.down {
				deletePod()
				return
			}
			c.withoutPlugin(t, func() {
				before := c.failedTearDowns(t)
				deletePod()
				soon(t, "kubelet asks the plugin, which is not there", func() error {
					if c.failedTearDowns(t) == before {
						return errors.New("its log does not say so")
					}
					return nil
				})
			})
			c.await(t, podPath("demo", "counter"), k8s.Gone)
		})
	}
}
