// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"net/http"
	"testing"
)

// VolumeControllers starts those of kube-controller-manager that bind claims to volumes and let go of what is deleted,
// and no other, until the test ends.
func (c *Cluster) VolumeControllers(t testing.TB) {
	t.Helper()
	c.control(t, ControllerManager, "--controllers="+
		"persistentvolume-binder-controller,persistentvolumeclaim-protection-controller,persistentvolume-protection-controller")
}

// Scheduler starts kube-scheduler, until the test ends, and makes an object of a node that is ready for pods. They are
// assigned to it; kubelet, which would run them, is not there.
func (c *Cluster) Scheduler(t testing.TB, node string) {
	t.Helper()
	object := map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": node, "labels": map[string]any{"kubernetes.io/hostname": node}},
	}
	if status, body := c.Do(t, http.MethodPost, "/api/v1/nodes", object); status != http.StatusCreated {
		t.Fatalf("node: %d: %s", status, body)
	}
	object["status"] = map[string]any{
		"allocatable": map[string]any{"cpu": "8", "memory": "8Gi", "pods": "100"},
		"capacity":    map[string]any{"cpu": "8", "memory": "8Gi", "pods": "100"},
		"conditions":  []any{map[string]any{"type": "Ready", "status": "True"}},
	}
	if status, body := c.Do(t, http.MethodPut, "/api/v1/nodes/"+node+"/status", object); status != http.StatusOK {
		t.Fatalf("node: %d: %s", status, body)
	}
	// Admission gives every new node this taint, and a controller that is not here would take it away.
	c.Kubectl(t, "taint", "node", node, "node.kubernetes.io/not-ready:NoSchedule-")
	c.control(t, Scheduler)
}

// control starts a component that is a client of the API server, until the test ends.
func (c *Cluster) control(t testing.TB, name string, args ...string) {
	t.Helper()
	p, err := c.component(name, append([]string{"--kubeconfig=" + c.Admin, "--leader-elect=false", "--secure-port=0"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ended() {
			t.Error(p.early())
		}
		p.kill()
		if t.Failed() {
			t.Logf("%s:\n%s", name, tail(p.log))
		}
	})
}
