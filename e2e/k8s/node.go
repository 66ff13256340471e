// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// NodeName is the name of the node in its cluster.
const NodeName = "node1"

// Node is a whole cluster of one node: what Cluster is, and controllers, a scheduler, kubelet, containerd with runc and CNI
// plugins, and a registry that is every registry to the node. All of it is in mount, PID, network and IPC namespaces of its
// own, where the usual paths are the node's: /var/lib/kubelet, /run, /sys/fs/bpf. Of the network there is one interface,
// eth0, and at its other end the world: another network namespace, to send packets from.
//
//	n, err := k8s.StartNode(ctx)
//	defer n.Close()
//	n.Push(ctx, "ghcr.io/acme/app:v1", image)
//	n.Apply(t, pod)
//
// What holds, and the test that shows it:
//   - nothing is left of it after Close: no process, mount, link, cgroup or file (TestNodeLeavesNothing);
//   - nor does anything run when the test's process was killed, and the next node removes its files
//     (TestNodeDiesWithItsTest);
//   - several nodes at once do not meet (TestNodesAreApart).
type Node struct {
	*Cluster
	World *World

	bin      string // of build.sh
	cgroup   string // its name in each hierarchy
	lock     *os.File
	init     *process
	running  map[string]*process
	registry *http.Server
}

// StartNode starts a node and returns when it is ready for pods. The caller must Close it.
func StartNode(ctx context.Context) (_ *Node, err error) {
	bin, err := build(ctx, "node")
	if err != nil {
		return nil, err
	}
	removeDead()
	n := &Node{bin: bin, running: map[string]*process{}}
	n.Cluster, err = newCluster(bin, newSpace(), apiAddress, "--bind-address=0.0.0.0", "--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction", "--kubelet-preferred-address-types=InternalIP")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.lock, err = claim(n.dir); err != nil {
		return nil, err
	}
	if err := n.enterNode(); err != nil {
		return nil, err
	}
	if err := n.writeConfigs(); err != nil {
		return nil, err
	}
	if err := n.startRegistry(ctx); err != nil {
		return nil, err
	}
	if err := n.startComponents(ctx); err != nil {
		return nil, err
	}
	return n, n.ready(ctx)
}

// enterNode makes the namespaces of the node and everything in them that is no process.
func (n *Node) enterNode() error {
	init := exec.Command(filepath.Join(n.bin, "pause"))
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC}
	var err error
	if n.init, err = n.space.spawn("init", n.log("init"), init); err != nil {
		return err
	}
	if err := n.space.enter(n.init.cmd.Process.Pid); err != nil {
		return err
	}
	if err := n.space.do(n.mount); err != nil {
		return err
	}
	// By a process of the PID namespace, which the thread itself is not in.
	mount, err := absolute("mount")
	if err != nil {
		return err
	}
	if out, err := n.Output(exec.Command(mount, "-t", "proc", "proc", "/proc")); err != nil {
		return fmt.Errorf("mount /proc: %w: %s", err, out)
	}
	if err := n.makeCgroups(); err != nil {
		return err
	}
	n.World, err = newWorld(n.space)
	return err
}

// startComponents starts them in an order in which none has to wait for another in vain.
func (n *Node) startComponents(ctx context.Context) error {
	if err := n.StartComponent(Containerd); err != nil {
		return err
	}
	if err := n.start(ctx); err != nil {
		return err
	}
	err := poll(ctx, "containerd answers", func() error {
		conn, err := n.dial(ctx, "unix", containerdSocket)
		if err == nil {
			conn.Close()
		}
		return err
	}, n.running[Containerd])
	if err != nil {
		return err
	}
	for _, name := range []string{Kubelet, ControllerManager, Scheduler} {
		if err := n.StartComponent(name); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until pods can run: kubelet says so, and the controllers have made what every pod wants.
func (n *Node) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("the node is not ready in time"))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for _, p := range n.running {
		go func() {
			select {
			case <-p.done:
				stop(p.early())
			case <-ctx.Done():
			}
		}()
	}
	for _, wait := range []struct {
		path string
		ok   func(object json.RawMessage) (bool, error)
	}{
		{"/api/v1/nodes/" + NodeName, Condition("Ready")},
		{"/api/v1/namespaces/default/serviceaccounts/default", Exists},
		{"/api/v1/namespaces/default/configmaps/kube-root-ca.crt", Exists},
	} {
		if err := n.Await(ctx, wait.path, wait.ok); err != nil {
			return err
		}
	}
	return nil
}

// Close ends all processes, waits until they are gone, and removes what they leave on the machine: files and cgroups.
func (n *Node) Close() error {
	var err error
	if n.registry != nil {
		err = n.registry.Close()
	}
	if n.init != nil {
		n.init.kill() // the kernel ends all others of its PID namespace before this one
		for _, p := range n.running {
			<-p.done
		}
	}
	if n.World != nil {
		n.World.close()
	}
	if n.cgroup != "" {
		err = errors.Join(err, removeCgroups(n.cgroup))
	}
	err = errors.Join(err, n.close())
	if n.lock != nil {
		n.lock.Close()
	}
	return err
}

// Start starts a command on the node, whose path must be absolute. It ends with the node.
func (n *Node) Start(cmd *exec.Cmd) error {
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "PATH="+n.bin+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "KUBECONFIG="+n.Admin)
	return n.space.start(cmd)
}

// Output runs a command on the node and returns what it prints.
func (n *Node) Output(cmd *exec.Cmd) (string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = n.Start(cmd)
	w.Close()
	if err != nil {
		return "", err
	}
	out, err := readAll(r)
	return out, errors.Join(err, cmd.Wait())
}

// Path is where this process sees a file of the node.
func (n *Node) Path(path string) string {
	return filepath.Join("/proc", fmt.Sprint(n.init.cmd.Process.Pid), "root", path)
}

// Dir is the directory of everything that the node's components keep; their logs are in it.
func (n *Node) Dir() string { return n.dir }
