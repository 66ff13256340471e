// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
)

// Volume is a volume of a pod, published by kubelet's calls.
type Volume struct {
	Target string
	node   *Node
	pod    kubelet.Pod
	volume kubelet.Volume
}

// New prepares a volume of a new pod; nothing is called yet.
func (n *Node) New(attributes map[string]string) *Volume {
	n.volumes++
	return &Volume{
		node:   n,
		pod:    kubelet.Pod{Namespace: "e2e", Name: fmt.Sprintf("pod-%d", n.volumes), UID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n.volumes), ServiceAccount: "app"},
		volume: kubelet.Volume{Name: "bpf", Attributes: attributes},
	}
}

// NewFor is New for a pod that is given.
func (n *Node) NewFor(pod kubelet.Pod, volume kubelet.Volume) *Volume {
	return &Volume{node: n, pod: pod, volume: volume}
}

// Publish sets up a volume of a new pod, and tears it down with the test.
func (n *Node) Publish(t testing.TB, attributes map[string]string) *Volume {
	t.Helper()
	v := n.New(attributes)
	if err := v.SetUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.TearDown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return v
}

// Image is the image that the volume names.
func (v *Volume) Image() string { return v.volume.Attributes["image"] }

// SetUp makes kubelet's call. It may be repeated.
func (v *Volume) SetUp(ctx context.Context) (err error) {
	v.Target, err = v.node.Kubelet.SetUp(ctx, v.pod, v.volume)
	return err
}

// TearDown makes kubelet's call. It may be repeated.
func (v *Volume) TearDown(ctx context.Context) error {
	return v.node.Kubelet.TearDown(ctx, v.pod, v.volume.Name)
}

// Entry is a line of json/<map>.
type Entry struct{ Key, Value json.RawMessage }

// Entries reads a map as a container does by cat.
func (v *Volume) Entries(t testing.TB, name string) []Entry {
	t.Helper()
	file, err := os.Open(filepath.Join(v.Target, "json", name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var out []Entry
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("json/%s: %q: %v", name, lines.Text(), err)
		}
		out = append(out, e)
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("json/%s: %v", name, err)
	}
	return out
}

// Value decodes the value of the entry whose key reads key in JSON. It returns false where there is none.
func (v *Volume) Value(t testing.TB, name, key string, value any) bool {
	t.Helper()
	for _, e := range v.Entries(t, name) {
		if string(e.Key) == key {
			if err := json.Unmarshal(e.Value, value); err != nil {
				t.Fatalf("json/%s at %s: %s: %v", name, key, e.Value, err)
			}
			return true
		}
	}
	return false
}
