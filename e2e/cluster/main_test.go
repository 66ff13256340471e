// SPDX-License-Identifier: Apache-2.0

// Package cluster_test holds what the node plugin promises in a cluster: who may run what is the API server's to say. The
// API server, the daemon, the registry and the kernel are real; kubelet is package e2e/kubelet.
package cluster_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/e2e/k8s"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

// node is a node of a cluster. Its daemon has the rights of deploy/rbac.yaml and no policy files.
type node struct {
	*nodetest.Node
	*k8s.Cluster
	http  string       // of the daemon
	asked atomic.Int64 // requests to the registry
	image string       // signed by the node's key
}

func start(t *testing.T) *node {
	t.Helper()
	n := &node{Cluster: k8s.Start(t), http: freeAddress(t)}
	kubeconfig := n.ServiceAccount(t, "bpfvol-system", "bpfvol")
	rights, err := os.ReadFile("../../deploy/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n.Apply(t, string(rights))
	n.Node = nodetest.Start(t, nodetest.Options{
		Serve: []string{"--policy-dir", "", "--kubeconfig", kubeconfig, "--http", n.http},
		Registry: func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n.asked.Add(1)
				next.ServeHTTP(w, r)
			})
		},
	})
	n.image = n.Signed(t, "hooks", filepath.Join("..", "..", "bpf", "hooks.bpf.o"))
	n.asked.Store(0)
	return n
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// policy is an object that admits what the node's key signed below a path of its registry.
func (n *node) policy(t *testing.T, name, path string) string {
	t.Helper()
	key, err := os.ReadFile(n.KeyPrefix() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	object, err := json.Marshal(map[string]any{
		"apiVersion": "bpfvol.io/v1alpha1", "kind": "BytecodePolicy", "metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"images":      []string{n.Registry + path},
			"authorities": []any{map[string]any{"key": map[string]any{"data": string(key)}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(object)
}

// pod makes the object of a pod, as its owner would by kubectl.
func (n *node) pod(t *testing.T, namespace, serviceAccount, name string) kubelet.Pod {
	t.Helper()
	n.ServiceAccount(t, namespace, "default") // without one there are no pods
	n.ServiceAccount(t, namespace, serviceAccount)
	n.Apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s}, spec: {serviceAccountName: %s, containers: [{name: c, image: x}]}}`, name, namespace, serviceAccount))
	uid := n.Kubectl(t, "get", "pod", "-n", namespace, name, "-o", "jsonpath={.metadata.uid}")
	return kubelet.Pod{Namespace: namespace, Name: name, UID: uid, ServiceAccount: serviceAccount}
}

const cookie = "77"

func (n *node) volume(image string) kubelet.Volume {
	return kubelet.Volume{Name: "bpf", Attributes: map[string]string{
		"image": image, "attach": "{program: on_tracepoint, tracepoint: {name: syscalls/sys_enter_getpgid, cookie: " + cookie + "}}", "pullPolicy": "Always",
	}}
}

// publishes sets up a volume and sees that its program runs: it counts what this process does.
func (n *node) publishes(t *testing.T, pod kubelet.Pod, volume kubelet.Volume) {
	t.Helper()
	v := n.NewFor(pod, volume)
	if err := v.SetUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	const calls = 5
	for range calls {
		if _, err := unix.Getpgid(0); err != nil {
			t.Fatal(err)
		}
	}
	var got int
	if v.Value(t, "cookies", cookie, &got); got != calls {
		t.Errorf("the volume counted %d calls, want %d", got, calls)
	}
	if err := v.TearDown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// refused sets up a volume and wants an answer, by which the registry was not asked anything.
func (n *node) refused(t *testing.T, pod kubelet.Pod, volume kubelet.Volume, code codes.Code, text string) {
	t.Helper()
	before := n.asked.Load()
	v := n.NewFor(pod, volume)
	err := v.SetUp(t.Context())
	var refused *kubelet.MountError
	if !errors.As(err, &refused) || refused.Status.Code() != code || refused.Status.Message() != text {
		t.Errorf("got  %v\nwant %v: %s", err, code, text)
	}
	if asked := n.asked.Load() - before; asked != 0 {
		t.Errorf("the registry was asked %d times", asked)
	}
	if err := v.TearDown(t.Context()); err != nil {
		t.Error(err)
	}
}

// soon waits until ok holds.
func soon(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func (n *node) readyz(t *testing.T) (status int, text string) {
	t.Helper()
	resp, err := http.Get("http://" + n.http + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if err := resp.Write(&b); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}
