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
// deleted after that, or while it was away, leaves nothing.
func TestKubeletRestarts(t *testing.T) {
	c := start(t)
	c.deploy(t, asDaemonSet)
	for _, test := range []struct {
		name   string
		signal os.Signal
		away   bool // the pod is deleted while kubelet is away
	}{
		{"by SIGTERM", syscall.SIGTERM, false},
		{"by SIGKILL", syscall.SIGKILL, false},
		{"while the pod is deleted", syscall.SIGKILL, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t)
			c.nothingLeft(t)
			c.counter(t)
			before := c.containerID(t, "demo", "counter")
			c.send(t, 10)

			c.StopComponent(k8s.Kubelet, test.signal)
			c.send(t, 10)
			if test.away {
				c.kubectl(t, "delete", "pod", "-n", "demo", "counter", "--grace-period=0", "--force")
			}
			if err := c.StartComponent(k8s.Kubelet); err != nil {
				t.Fatal(err)
			}
			if test.away {
				return // nothingLeft has the say
			}
			soon(t, "kubelet knows the volume", func() error { return c.knowsVolumes(t, 1) })
			c.awaitDriver(t, true)
			c.send(t, 10)
			if got := c.packets(t, "demo", "counter"); got != 30 {
				t.Errorf("the pod reads %d packets, want 30", got)
			}
			if after := c.containerID(t, "demo", "counter"); after != before {
				t.Errorf("the pod's container was %s and is %s", before, after)
			}
			c.deletePod(t, "demo", "counter")
		})
	}
}

// knowsVolumes has no error if kubelet says that so many volumes of the driver are mounted.
func (c *cluster) knowsVolumes(t *testing.T, want int) error {
	t.Helper()
	status, metrics := c.Do(outlive{t}, http.MethodGet, "/api/v1/nodes/"+k8s.NodeName+"/proxy/metrics", nil)
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

// restartPlugin kills a plugin that is a process and starts it again, with something done in between.
func restartPlugin(t *testing.T, p *process, between func()) {
	t.Helper()
	p.stop(t, syscall.SIGKILL)
	between()
	p.start(t)
}

// Whatever happens to a pod while the plugin is away, nothing is left when it is back.
func TestPodIsDeletedWhileThePluginIsDown(t *testing.T) {
	c := start(t)
	var p process
	c.deploy(t, asProcess(&p))
	for _, test := range []struct {
		name   string
		delete []string
	}{
		{"with a grace period", []string{"--wait=false"}},
		{"by force", []string{"--grace-period=0", "--force"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t)
			c.nothingLeft(t)
			c.counter(t)
			restartPlugin(t, &p, func() {
				before := c.failedTearDowns(t)
				c.kubectl(t, append([]string{"delete", "pod", "-n", "demo", "counter"}, test.delete...)...)
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
	t.Run("by force, the plugin being there", func(t *testing.T) {
		c := start(t)
		c.nothingLeft(t)
		c.counter(t)
		c.kubectl(t, "delete", "pod", "-n", "demo", "counter", "--grace-period=0", "--force")
	})
}
