// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/e2e/k8s"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// node is what a node has of a real cluster: an API server, and its own rights there.
type node struct {
	*k8s.Cluster
	kubeconfig string
}

func startNode(t *testing.T) *node {
	t.Helper()
	n := &node{Cluster: k8s.Start(t)}
	n.kubeconfig = n.ServiceAccount(t, "bpfvol-system", "bpfvol")
	rights, err := os.ReadFile("../../deploy/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n.Apply(t, string(rights))
	return n
}

// client speaks with the rights of deploy/rbac.yaml.
func (n *node) client(t *testing.T) *Client { return connect(t, n.kubeconfig) }

func connect(t *testing.T, kubeconfig string) *Client {
	t.Helper()
	c, err := Connect(kubeconfig, "bpfvol/test")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// follow runs policies until the test ends.
func follow(t *testing.T, c *Client, now clock.PassiveClock) *Policies {
	t.Helper()
	p := c.Policies(Options{Compile: cosign.Compile, Clock: now})
	run(t, p.Run)
	return p
}

// run runs f, quietly, until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), klog.Logger{}))
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// soon waits until ok holds; changes are promised to be in force within a second of the API server's answer.
func soon(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

// ready waits until the policies are known.
func (n *node) ready(t *testing.T, p *Policies) {
	t.Helper()
	soon(t, "the policies are known", 30*time.Second, func() bool { return p.Err() == nil })
}

// policy is an object that admits unsigned images of a repository.
func policy(name, glob string) string {
	return fmt.Sprintf("---\napiVersion: %s\nkind: BytecodePolicy\nmetadata: {name: %s}\nspec: {images: [%q], unsigned: true}\n", v1alpha1.APIVersion, name, glob)
}

// use is a role that lets who has it use a policy.
func use(policy string) string {
	return fmt.Sprintf("---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: use-%[1]s}\n"+
		"rules: [{apiGroups: [bpfvol.io], resources: [bytecodepolicies], resourceNames: [%[1]q], verbs: [use]}]\n", policy)
}

func pod(namespace, serviceAccount string) verify.Subject {
	return verify.Subject{Namespace: namespace, ServiceAccount: serviceAccount}
}

// asks returns the names of the policies that a subject may use for an image, or the error.
func asks(t *testing.T, p *Policies, s verify.Subject, ref string) (string, error) {
	t.Helper()
	policies, err := p.For(t.Context(), s, parse(t, ref))
	names := make([]string, len(policies))
	for i, p := range policies {
		names[i] = p.Name
	}
	if err == nil && len(names) == 0 {
		t.Error("For returned neither policies nor an error")
	}
	return strings.Join(names, " "), err
}

func wantUsable(t *testing.T, p *Policies, s verify.Subject, ref, want string) {
	t.Helper()
	if got, err := asks(t, p, s, ref); err != nil || got != want {
		t.Errorf("%s may use %q for %s, error %v; want %q", s, got, ref, err, want)
	}
}

func wantDenied(t *testing.T, p *Policies, s verify.Subject, ref, want string) {
	t.Helper()
	_, err := asks(t, p, s, ref)
	if !errors.As(err, new(*verify.DeniedError)) || err.Error() != want {
		t.Errorf("%s, %s: got  %v\nwant %s", s, ref, err, want)
	}
}

func wantUnavailable(t *testing.T, p *Policies, s verify.Subject, ref, want string) {
	t.Helper()
	_, err := asks(t, p, s, ref)
	if !errors.Is(err, verify.ErrUnavailable) || err.Error() != want {
		t.Errorf("%s, %s: got  %v\nwant %s", s, ref, err, want)
	}
}

func parse(t *testing.T, ref string) image.Reference {
	t.Helper()
	r, err := image.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
