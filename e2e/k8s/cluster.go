// SPDX-License-Identifier: Apache-2.0

// Package k8s gives tests a Kubernetes control plane: the real kube-apiserver over the real etcd, without kubelet,
// controllers or scheduler. Objects stay what a test makes of them, and every answer (validation, RBAC, admission,
// kubectl's tables) is Kubernetes' own.
//
//	c := k8s.Start(t)
//	c.Apply(t, policy)
//	config := c.ServiceAccount(t, "shop", "web") // a kubeconfig
//	c.Kill(t)                                    // the API server is away
//	c.Restart(t)                                 // and back, with what it knew
//
// What holds, and the test that shows it:
//   - our CustomResourceDefinitions are installed and serve (TestClusterServesPolicies);
//   - RBAC decides, and a service account's kubeconfig is that service account (TestServiceAccountIsWhoItSaysItIs);
//   - after Kill nothing answers, after Restart everything is as it was (TestAPIServerComesBackWithItsState);
//   - nothing is left: no process, no file, no socket (TestClusterLeavesNothing).
//
// The binary is built from the Go module proxy by build.sh, once per machine and version: see docs/testing.md.
package k8s

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// readyTimeout is generous: the machine may be busy with other packages' tests.
const readyTimeout = 3 * time.Minute

// Cluster is an API server and its etcd, in a directory of their own.
type Cluster struct {
	Hyperkube string // the binary: etcd, kube-apiserver, kubectl and more, by its first argument
	Server    string // https://127.0.0.1:port, the same after Restart
	Admin     string // path of a kubeconfig of system:masters

	dir    string
	secret secrets
	port   *reservedPort
	client *http.Client
	parent *parent
	etcd   *process
	api    *process
}

// Start starts a control plane, installs deploy/crd and waits until all of it serves. It ends with the test.
func Start(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{Hyperkube: build(t)}
	var err error
	if c.dir, err = os.MkdirTemp("", "k8s-"); err != nil { //nolint:usetesting // with a test's name in it, etcd's socket would not fit into an address
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(c.dir); err != nil {
			t.Error(err)
		}
	})
	if c.port, err = reservePort(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.port.release)
	c.Server = fmt.Sprintf("https://127.0.0.1:%d", c.port.number)
	if c.secret, err = makeSecrets(c.dir); err != nil {
		t.Fatal(err)
	}
	c.client = c.secret.client()
	t.Cleanup(c.client.CloseIdleConnections)
	c.Admin = c.kubeconfig(t, "admin", c.secret.admin)

	c.parent = newParent()
	t.Cleanup(c.parent.close)
	if c.etcd, err = c.parent.start(c.log("etcd"), c.Hyperkube, "etcd", "--data-dir", filepath.Join(c.dir, "etcd"), "--socket", c.socket()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.etcd.kill)
	c.startAPI(t)
	t.Cleanup(func() { c.api.kill() })
	c.install(t)
	return c
}

// Kill ends the API server at once, as a node that loses its power does. Its port refuses connections then.
func (c *Cluster) Kill(t testing.TB) {
	t.Helper()
	c.api.kill()
	c.client.CloseIdleConnections()
}

// Restart starts the API server again, at the same address and with the same state, and waits until it is ready.
func (c *Cluster) Restart(t testing.TB) {
	t.Helper()
	c.startAPI(t)
}

func (c *Cluster) socket() string          { return filepath.Join(c.dir, "etcd.sock") }
func (c *Cluster) log(name string) string  { return filepath.Join(c.dir, name+".log") }
func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

func (c *Cluster) startAPI(t testing.TB) {
	t.Helper()
	var err error
	c.api, err = c.parent.start(c.log("kube-apiserver"), c.Hyperkube, "kube-apiserver",
		"--etcd-servers=unix://"+c.socket(),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		fmt.Sprintf("--secure-port=%d", c.port.number), "--permit-port-sharing",
		"--tls-cert-file="+c.file(servingCert), "--tls-private-key-file="+c.file(servingKey),
		"--token-auth-file="+c.file(tokenFile), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+c.file(accountKey), "--service-account-signing-key-file="+c.file(accountKey),
		"--service-cluster-ip-range=10.0.0.0/24", "--allow-privileged", "--profiling=false",
	)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for {
		status, _, err := c.request(t.Context(), http.MethodGet, "/readyz", nil)
		if err == nil && status == http.StatusOK {
			return
		}
		for _, p := range []*process{c.etcd, c.api} {
			if p.ended() {
				t.Fatalf("%s ended early:\n%s", p.name, tail(p.log))
			}
		}
		if time.Since(start) > readyTimeout {
			t.Fatalf("kube-apiserver is not ready after %s (status %d, %v):\n%s", readyTimeout, status, err, tail(c.log("kube-apiserver")))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// install applies deploy/crd and waits until its types are served.
func (c *Cluster) install(t testing.TB) {
	t.Helper()
	crds := filepath.Join(folder(), "../../deploy/crd")
	if files, _ := filepath.Glob(filepath.Join(crds, "*.yaml")); len(files) == 0 {
		t.Fatalf("no CustomResourceDefinition in %s", crds)
	}
	c.Kubectl(t, "apply", "-f", crds)
	c.Kubectl(t, "wait", "--for=condition=Established", "--timeout=60s", "-f", crds)
}

// folder is where this package's source lies.
func folder() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		panic("k8s: tests must be built with the paths of their source")
	}
	return filepath.Dir(file)
}

// build runs build.sh, which returns at once where the binary exists. Who waits for it is told so.
func build(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		start := time.Now()
		for tick := time.NewTicker(30 * time.Second); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				fmt.Fprintf(os.Stderr, "k8s: e2e/k8s/build.sh builds Kubernetes, or waits for who does; ten minutes on two cores, once: %s so far\n",
					time.Since(start).Round(time.Second))
			}
		}
	}()
	cmd := exec.CommandContext(ctx, filepath.Join(folder(), "build.sh"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("e2e/k8s/build.sh: %v:\n%s", err, lastLines(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String())
}

// process is a component that runs.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it is gone
}

func (p *process) kill() {
	p.cmd.Process.Kill() //nolint:errcheck // an error says that it is gone already
	<-p.done
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// parent starts processes that die with the test binary, however it dies. The kernel watches the thread that started
// them, and tests that enter network namespaces end threads; so one thread does nothing else.
type parent struct {
	jobs chan func()
}

func newParent() *parent {
	p := &parent{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for job := range p.jobs {
			job()
		}
	}()
	return p
}

// close ends the thread, and with it whatever still runs.
func (p *parent) close() { close(p.jobs) }

func (p *parent) start(log, command string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own
	cmd := exec.Command(command, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	p.jobs <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, err
	}
	proc := &process{name: args[0], log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		cmd.Wait() //nolint:errcheck // it is killed, or its log says more
		close(proc.done)
	}()
	return proc, nil
}

// tail returns the end of a component's log.
func tail(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return lastLines(text)
}

func lastLines(text []byte) string {
	const enough = 30
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-enough):], []byte("\n")))
}
