// SPDX-License-Identifier: Apache-2.0

// Package nodetest gives a test a whole node: the real `bpfvol serve`, a registry, a signing key, a policy that admits
// what that key signed, and a kubelet that calls the daemon's socket. Tests see what a user sees: the command line,
// kubelet's answers, the files of the target.
//
//	func TestMain(m *testing.M) { nodetest.Main(m) }
//
//	func TestCount(t *testing.T) {
//		n := nodetest.Start(t, nodetest.Options{})
//		image := n.Signed(t, "count", "count.bpf.o")
//		v := n.Publish(t, map[string]string{"image": image, "attach": "{program: on_exec, tracepoint: ...}"})
//		v.Entries(t, "execs")
//	}
package nodetest

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/stack"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// Options configures a Node.
type Options struct {
	// NetNS is the network namespace of the node; nil: that of the test.
	NetNS *bpftest.NetNS
	// Container puts the daemon, as a runtime does, into a mount and a cgroup namespace of its own, and into a network namespace
	// that only the registry and the commands share with it.
	Container bool
	// Without is a capability, as in capabilities(7), that the daemon does not get; empty: it gets what the test has.
	Without string
	// Registry comes before the node's registry and may answer in its place; nil: nothing does.
	Registry func(http.Handler) http.Handler
	// Policies is the policy file, which may depend on the registry's host; nil: one that admits what the node's key signed.
	Policies func(registry string) string
	// Start starts the daemon's process, in its namespaces; nil: it is started.
	Start func(*exec.Cmd) error
	// Serve are further arguments of `bpfvol serve`, which win over the node's own.
	Serve []string
}

// Node is a node in a directory, with its daemon running.
type Node struct {
	*stack.Stack
	Kubelet *kubelet.Kubelet
	volumes int
}

// Main runs the tests of a package as bpftest.Main does, and removes the binary that Start built.
func Main(m *testing.M) {
	act(os.Args)
	os.Exit(bpftest.Run(built{m}))
}

type built struct{ m *testing.M }

func (b built) Run() int {
	defer func() {
		if binDir != "" {
			os.RemoveAll(binDir)
		}
	}()
	return b.m.Run()
}

var binDir string

// binary builds bpfvol as a user would, once for all tests of a package.
var binary = sync.OnceValues(func() (string, error) {
	var err error
	if binDir, err = os.MkdirTemp("", "bpfvol-bin-"); err != nil {
		return "", err
	}
	path := filepath.Join(binDir, "bpfvol")
	return path, gobuild.Build(context.Background(), path, "", "./cmd/bpfvol")
})

// Start starts a node that ends with the test. Whatever is left then fails the test.
func Start(t testing.TB, opts Options) *Node {
	t.Helper()
	bpftest.Root(t)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	options := stack.Options{Bin: bin, Registry: opts.Registry, Serve: opts.Serve, Start: opts.start}
	switch {
	case opts.Container:
		options.HostProcess, options.NetNS = onNode(t, opts.NetNS), bpftest.NewNetNS(t).Path()
	case opts.NetNS != nil:
		options.NetNS = opts.NetNS.Path()
	}
	s, err := stack.New(options)
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{Stack: s}
	t.Cleanup(func() {
		if n.Kubelet != nil {
			n.Kubelet.Close()
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", s.DaemonLog())
		}
	})
	policies := opts.Policies
	if policies == nil {
		policies = func(string) string { return n.ownPolicy(t) }
	}
	n.SetPolicies(t, policies(n.Registry))
	if opts.Container {
		n.mountBPFFS(t)
	}
	if opts.Without == "" {
		n.StartDaemon(t)
	}
	return n
}

// SetPolicies writes the one policy file. A running daemon notices within a second.
func (n *Node) SetPolicies(t testing.TB, text string) {
	t.Helper()
	// Renamed into place, as nobody may read half of it.
	file := filepath.Join(n.PolicyDir(), "e2e.yaml")
	if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// ownPolicy admits, for every service account of namespace e2e, what the node's key signed.
func (n *Node) ownPolicy(t testing.TB) string {
	t.Helper()
	key, err := os.ReadFile(n.KeyPrefix() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return "apiVersion: bpfvol.io/v1alpha1\nkind: BytecodePolicy\nmetadata: {name: e2e}\nspec:\n  images: [\"" + n.Registry + "/**\"]\n" +
		"  authorities:\n  - key:\n      data: |\n        " + strings.ReplaceAll(strings.TrimSpace(string(key)), "\n", "\n        ") + "\n" +
		"  allow: {hooks: [xdp, tc, tracepoint, rawTracepoint, kprobe, kretprobe, fentry, fexit, uprobe, uretprobe, lsm, cgroup, perfEvent, iter, netfilter, skLookup, netkit], writableMaps: [hits]}\n  subjects: [e2e/*]\n"
}

// StartDaemon starts the daemon, again after StopDaemon.
func (n *Node) StartDaemon(t testing.TB) {
	t.Helper()
	if _, err := n.Stack.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Connect makes kubelet call the daemon that runs now.
func (n *Node) Connect(ctx context.Context) error {
	k, err := kubelet.Connect(ctx, n.Endpoint(), n.KubeletDir())
	if err != nil {
		return err
	}
	if n.Kubelet != nil {
		n.Kubelet.Close()
	}
	n.Kubelet = k
	return nil
}

// StopDaemon sends sig and waits for the end. With SIGTERM the daemon must end with status 0.
func (n *Node) StopDaemon(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := n.Stack.StopDaemon(sig); err != nil {
		t.Fatalf("the daemon ended by %v: %v", sig, err)
	}
}

// Run runs a verb of bpfvol and returns its standard output.
func (n *Node) Run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := n.CLI(context.WithoutCancel(t.Context()), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Signed makes an image of an object file, signs it, pushes it to the node's registry and returns its reference.
// args go to bpfvol build.
func (n *Node) Signed(t testing.TB, name, file string, args ...string) string {
	t.Helper()
	image := n.Image(name)
	n.Run(t, append([]string{"build", file, "-t", image}, args...)...)
	n.Sign(t, image)
	n.Run(t, "push", image)
	return image
}

// Image is the reference of an image in the node's registry.
func (n *Node) Image(name string) string { return n.Registry + "/e2e/" + name + ":v1" }

// Sign signs an image with the key of the policy, where it is: in the local cache or in the registry.
func (n *Node) Sign(t testing.TB, image string) {
	t.Helper()
	n.Run(t, "sign", image, "--key", n.KeyPrefix()+".key")
}
