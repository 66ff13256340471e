// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/k8s"
	"github.com/bpfvol/bpfvol/internal/kernelstate"
)

// patience is how long anything in the cluster may take. The machine may be busy.
const patience = 2 * time.Minute

// kubectl runs kubectl as admin, also while the test cleans up.
func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.TryKubectl(outlive(t), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// during is a test with another context.
type during struct {
	testing.TB
	ctx context.Context
}

func (d during) Context() context.Context { return d.ctx }

// outlive is a test whose context lasts longer than it, for cleanups.
func outlive(t *testing.T) testing.TB { return during{t, context.WithoutCancel(t.Context())} }

// await waits by a watch until an object is as it should be.
func (c *cluster) await(t *testing.T, object string, ok func(json.RawMessage) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(t.Context()), patience, errors.New("not in time"))
	defer cancel()
	if err := c.Await(ctx, object, ok); err != nil {
		t.Fatal(err)
	}
}

func podPath(namespace, name string) string {
	return "/api/v1/namespaces/" + namespace + "/pods/" + name
}

func (c *cluster) awaitReady(t *testing.T, namespace, pod string) {
	t.Helper()
	c.await(t, podPath(namespace, pod), k8s.Condition("Ready"))
}

// send sends packets to the node's interface.
func (c *cluster) send(t *testing.T, packets int) {
	t.Helper()
	if err := c.World.SendUDP(packets); err != nil {
		t.Fatal(err)
	}
}

// deletePod deletes a pod and waits until it is gone.
func (c *cluster) deletePod(t *testing.T, namespace, pod string) {
	t.Helper()
	c.kubectl(t, "delete", "pod", "-n", namespace, pod, "--timeout="+patience.String())
}

// exec runs a command in a container and returns its standard output.
func (c *cluster) exec(t *testing.T, namespace, pod string, command ...string) string {
	t.Helper()
	return c.kubectl(t, append([]string{"exec", "-n", namespace, pod, "--"}, command...)...)
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

// soon waits until ok has no error, for what tells nobody of its end.
func soon(t *testing.T, what string, ok func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not after %s: %s: %v", patience, what, err)
		}
	}
}

// nothingLeft makes the test fail if, at its end, anything is left on the node of the volumes that it made: in the kernel, in
// the directories of the plugin, in kubelet's.
func (c *cluster) nothingLeft(t *testing.T) {
	t.Helper()
	before := c.traces(t)
	t.Cleanup(func() {
		var left []string
		soon(t, "nothing is left", func() error {
			now := c.traces(t)
			left = now.kernel.Since(before.kernel)
			for _, f := range slices.Sorted(maps.Keys(now.files)) {
				if !before.files[f] {
					left = append(left, f)
				}
			}
			if len(left) > 0 {
				return errors.New("left behind: " + strings.Join(left, "\n\t"))
			}
			return nil
		})
	})
}

// traces are what volumes leave.
type traces struct {
	kernel kernelstate.Snapshot
	files  map[string]bool // and mounts
}

func (c *cluster) traces(t *testing.T) traces {
	t.Helper()
	s := traces{files: map[string]bool{}}
	var err error
	if s.kernel, err = kernelstate.Take(); err != nil {
		t.Fatal(err)
	}
	alive := c.kubectl(t, "get", "pods", "-A", "-o", "jsonpath={.items[*].metadata.uid}") // the plugin's own pod changes
	for _, dir := range []string{"/sys/fs/bpf/bpfvol/volumes", "/sys/fs/bpf/bpfvol/points", "/run/bpfvol/volumes", "/run/bpfvol/locks", "/var/lib/kubelet/pods"} {
		entries, err := os.ReadDir(c.Path(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.Contains(alive, e.Name()) {
				s.files[dir+"/"+e.Name()] = true
			}
		}
	}
	mounts, err := os.ReadFile(c.Path("/proc/1/mounts"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " bpf ") || strings.Contains(line, "kubernetes.io~csi") {
			s.files[fmt.Sprintf("mount %s", strings.TrimSpace(line))] = true
		}
	}
	return s
}

// archive keeps what says why a test failed. The first call counts: later ones would see less.
func (c *cluster) archive(t *testing.T) {
	t.Helper()
	if c.archived[t.Name()] {
		return
	}
	c.archived[t.Name()] = true
	dir, err := filepath.Abs(filepath.Join("../../.cache/e2e", strings.ReplaceAll(t.Name(), "/", "_")))
	if err != nil {
		t.Error(err)
		return
	}
	os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Error(err)
		return
	}
	t.Logf("what the node's components say is in %s", dir)
	logs, _ := filepath.Glob(filepath.Join(c.Dir(), "*.log"))
	for _, log := range logs {
		if text, err := os.ReadFile(log); err == nil {
			os.WriteFile(filepath.Join(dir, filepath.Base(log)), text, 0o644) //nolint:errcheck // as much as there is
		}
	}
	for name, args := range map[string][]string{
		"events":   {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		"pods":     {"describe", "pods", "-A"},
		"plugin":   {"logs", "-n", pluginNamespace, "daemonset/bpfvol", "--tail=-1"},
		"previous": {"logs", "-n", pluginNamespace, "daemonset/bpfvol", "--tail=-1", "--previous"},
	} {
		out, err := c.TryKubectl(outlive(t), "", args...)
		if err != nil {
			out += err.Error()
		}
		os.WriteFile(filepath.Join(dir, name), []byte(out), 0o644) //nolint:errcheck // as much as there is
	}
	if mounts, err := os.ReadFile(c.Path("/proc/1/mounts")); err == nil {
		os.WriteFile(filepath.Join(dir, "mounts"), mounts, 0o644) //nolint:errcheck // as much as there is
	}
}
