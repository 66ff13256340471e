// SPDX-License-Identifier: Apache-2.0

// Package provision_test holds what `bpfvol provision` promises, with the rights of deploy/provision-rbac.yaml. The API
// server, its volume controllers and the scheduler are Kubernetes' own; there is no kubelet, as no volume is mounted.
package provision_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// patience is for a machine that does much else.
const patience = 90 * time.Second

var binDir string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// run builds both binaries, as `make build` does, side by side.
func run(m *testing.M) (code int, err error) {
	if binDir, err = os.MkdirTemp("", "bpfvol-bin-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(binDir)
	for _, name := range []string{"bpfvol", "bpfvol-provision"} {
		if err := gobuild.Build(context.Background(), filepath.Join(binDir, name), "", "./cmd/"+name); err != nil {
			return 0, err
		}
	}
	return m.Run(), nil
}

// cluster is an API server whose claims are bound.
type cluster struct {
	*k8s.Cluster
	kubeconfig string // of the provisioner
}

func start(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{Cluster: k8s.Start(t)}
	c.kubeconfig = c.ServiceAccount(t, "bpfvol-system", "bpfvol-provision")
	rights, err := os.ReadFile("../../deploy/provision-rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(t, string(rights))
	c.VolumeControllers(t)
	c.ServiceAccount(t, "shop", "default")
	return c
}

// provisioner is `bpfvol provision` that runs.
type provisioner struct {
	cmd  *exec.Cmd
	done chan error

	mu  sync.Mutex
	log bytes.Buffer
}

func (p *provisioner) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(text)
}

func (p *provisioner) says(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Contains(p.log.String(), text)
}

// provision starts a provisioner, which must end with status 0, at the latest when the test does.
func (c *cluster) provision(t *testing.T, args ...string) *provisioner {
	t.Helper()
	p := &provisioner{done: make(chan error, 1)}
	args = append([]string{"provision", "--kubeconfig", c.kubeconfig, "--namespace", "bpfvol-system", "--http", ""}, args...)
	p.cmd = exec.Command(filepath.Join(binDir, "bpfvol"), args...)
	p.cmd.Stderr = p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() {
		p.stop(t)
		if p.says("forbidden") {
			t.Error("deploy/provision-rbac.yaml lets it do less than it wants to")
		}
		if t.Failed() {
			t.Logf("the provisioner's log:\n%s", p.log.String())
		}
	})
	return p
}

// stop ends it as kubelet does, and waits for the end.
func (p *provisioner) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		return
	}
	select {
	case err := <-p.done:
		if err != nil {
			t.Errorf("bpfvol provision ended by SIGTERM: %v", err)
		}
	case <-time.After(patience):
		p.cmd.Process.Kill()
		t.Error("bpfvol provision did not end by SIGTERM")
	}
}

// class makes a StorageClass. change may be nil.
func (c *cluster) class(t *testing.T, name string, parameters map[string]string, change func(map[string]any)) {
	t.Helper()
	object := map[string]any{
		"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": map[string]any{"name": name},
		"provisioner": "csi.bpfvol.io", "parameters": parameters,
	}
	if change != nil {
		change(object)
	}
	c.apply(t, object)
}

// claim makes a PersistentVolumeClaim in namespace shop. change may be nil.
func (c *cluster) claim(t *testing.T, name, class string, change func(object, spec map[string]any)) {
	t.Helper()
	spec := map[string]any{
		"accessModes": []string{"ReadWriteMany"}, "storageClassName": class,
		"resources": map[string]any{"requests": map[string]any{"storage": "1Mi"}},
	}
	object := map[string]any{
		"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": spec,
		"metadata": map[string]any{"name": name, "namespace": "shop"},
	}
	if change != nil {
		change(object, spec)
	}
	c.apply(t, object)
}

func (c *cluster) apply(t *testing.T, object any) {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(t, string(text))
}

// volume is what of a PersistentVolume matters to a node and an admin.
type volume struct {
	Metadata struct{ Name string }
	Spec     struct {
		AccessModes                   []string
		Capacity                      map[string]string
		PersistentVolumeReclaimPolicy string
		StorageClassName              string
		VolumeMode                    string
		MountOptions                  []string
		NodeAffinity                  any
		CSI                           struct {
			Driver, VolumeHandle, FSType string
			VolumeAttributes             map[string]string
			NodePublishSecretRef         map[string]string
		}
	}
	Status struct{ Phase string }
}

// bound waits until a claim is bound, and returns its volume.
func (c *cluster) bound(t *testing.T, claim string) volume {
	t.Helper()
	c.wait(t, "-n", "shop", "--for=jsonpath={.status.phase}=Bound", "pvc/"+claim)
	return c.volume(t, c.Kubectl(t, "get", "pvc", "-n", "shop", claim, "-o", "jsonpath={.spec.volumeName}"))
}

func (c *cluster) volume(t *testing.T, name string) (v volume) {
	t.Helper()
	if err := json.Unmarshal([]byte(c.Kubectl(t, "get", "pv", name, "-o", "json")), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (c *cluster) wait(t *testing.T, args ...string) {
	t.Helper()
	c.Kubectl(t, append([]string{"wait", "--timeout", patience.String()}, args...)...)
}

// soon waits until ok holds.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %s: %s", patience, what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
