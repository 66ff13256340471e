// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// A hundred pods with volumes run at once on the node, and go. Nothing is left. Forty of them are on one interface: from the 48th
// on there is no place, as one program has 64 maps at most and the kernel allows 33 tail calls.
func TestAHundredPodsComeAndGo(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.counter(t)

	const pods, atOnce = 100, 10
	ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Minute, errors.New("not in time"))
	defer cancel()
	var running sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	started := time.Now()
	for i := range pods {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			name := fmt.Sprintf("counter-%d", i)
			attach := "{program: count, xdp: {interface: eth0}}"
			if i%5 >= 2 {
				attach = "{program: on_exec, tracepoint: syscalls/sys_enter_execve}"
			}
			c.create(t, name, attach)
			if err := c.Await(ctx, podPath("demo", name), k8s.Condition("Ready")); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	up := time.Since(started)
	if t.Failed() {
		return
	}
	c.send(t, 10)
	for _, name := range []string{"counter-0", "counter-96"} {
		if got := c.packets(t, "demo", name); got != 10 {
			t.Errorf("%s reads %d packets, want 10", name, got)
		}
	}
	c.kubectl(t, "delete", "pods", "-n", "demo", "--all", "--timeout=5m")
	t.Logf("%d pods came in %s and went in %s", pods, up.Round(time.Second), (time.Since(started) - up).Round(time.Second))
}

// create makes a pod as counter.yaml has one, with another name and other programs; with none, it has an emptyDir instead.
func (c *cluster) create(t *testing.T, name, attach string) {
	t.Helper()
	documents := strings.Split(c.exampleManifest(t, "counter.yaml"), "\n---\n")
	var pod map[string]any
	if err := yaml.Unmarshal([]byte(documents[len(documents)-1]), &pod); err != nil {
		t.Error(err)
		return
	}
	pod["metadata"].(map[string]any)["name"] = name
	volume := pod["spec"].(map[string]any)["volumes"].([]any)[0].(map[string]any)
	if attach == "" {
		delete(volume, "csi")
		volume["emptyDir"] = map[string]any{}
	} else {
		volume["csi"].(map[string]any)["volumeAttributes"].(map[string]any)["attach"] = attach
	}
	if status, body := c.Do(outlive(t), http.MethodPost, "/api/v1/namespaces/demo/pods", pod); status != http.StatusCreated {
		t.Errorf("create %s: %d: %s", name, status, body)
	}
}

// startOverheadLimit is how much longer a pod may take to start for its volume.
const startOverheadLimit = 100 * time.Millisecond

// From the creation of a pod until the API server says that it is ready, with a volume and with an emptyDir in its place, in
// pairs whose order is random. The image of the programs is in the plugin's cache. The pods stay, so each volume's program joins
// all those before it.
func TestPodStartOverhead(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.counter(t)
	took := map[string][]time.Duration{}
	const warmUp, pairs = 1, 15
	for i := range warmUp + pairs {
		for name, attach := range map[string]string{"without": "", "with": "{program: count, xdp: {interface: eth0}}"} {
			pod := fmt.Sprintf("%s-%d", name, i)
			begun := time.Now()
			c.create(t, pod, attach)
			c.awaitReady(t, "demo", pod)
			if d := time.Since(begun); i >= warmUp {
				took[attach] = append(took[attach], d)
			}
		}
	}
	medians := map[bool]time.Duration{}
	for attach, samples := range took {
		slices.Sort(samples)
		medians[attach != ""] = samples[len(samples)/2]
		t.Logf("%q: %v", attach, samples)
	}
	overhead := medians[true] - medians[false]
	fmt.Printf("BENCH e2e.pod_start_ms %d ms\n", medians[true].Milliseconds())
	fmt.Printf("BENCH e2e.pod_start_overhead_ms %d ms\n", overhead.Milliseconds())
	if overhead > startOverheadLimit {
		t.Errorf("a pod with a volume takes %s longer to start than one with an emptyDir, more than %s", overhead, startOverheadLimit)
	}
}
