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
// StartNode starts all of a cluster: see Node. The binaries are built from the Go module proxy by build.sh, once per machine and
// version: see docs/testing.md.
package k8s

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
)

// readyTimeout is generous: the machine may be busy with other packages' tests.
const readyTimeout = 3 * time.Minute

// Cluster is an API server and its etcd, in a directory of their own.
type Cluster struct {
	Hyperkube string // the binary: etcd, kube-apiserver, kubectl and more, by its first argument
	Server    string // https://address:port, the same after Restart
	Admin     string // path of a kubeconfig of system:masters

	dir    string
	secret secrets
	flags  []string // of kube-apiserver, further ones
	client *http.Client
	space  *space // where its processes run and its address is
	etcd   *process
	api    *process
}

// Start starts a control plane, installs deploy/crd and waits until all of it serves. It ends with the test.
func Start(t testing.TB) *Cluster {
	t.Helper()
	bin, err := build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	port, err := reservePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(port.release)
	c, err := newCluster(bin, newSpace(), netip.AddrPortFrom(loopback, port.number), "--bind-address=127.0.0.1", "--permit-port-sharing",
		"--endpoint-reconciler-type=none", "--authorization-mode=RBAC")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.install(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// newCluster makes what is needed to start a control plane: a directory with its secrets.
func newCluster(bin string, in *space, address netip.AddrPort, flags ...string) (*Cluster, error) {
	c := &Cluster{Hyperkube: filepath.Join(bin, "hyperkube"), Server: "https://" + address.String(), flags: flags, space: in}
	var err error
	if c.dir, err = os.MkdirTemp("", "k8s-"); err != nil {
		return nil, err
	}
	if c.secret, err = makeSecrets(c.dir, address.Addr(), serviceAddress); err == nil {
		c.Admin, err = c.writeKubeconfig("admin", c.secret.admin)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(c.dir))
	}
	c.client = c.secret.client(c.dial)
	c.flags = append(c.flags, "--advertise-address="+address.Addr().String(), fmt.Sprintf("--secure-port=%d", address.Port()))
	return c, nil
}

// start starts etcd and the API server. On failure, too, the cluster must be closed.
func (c *Cluster) start(ctx context.Context) (err error) {
	c.etcd, err = c.component("etcd", "--data-dir", c.file("etcd"), "--socket", c.socket())
	if err != nil {
		return err
	}
	return c.startAPI(ctx)
}

// close ends all processes and removes the directory.
func (c *Cluster) close() error {
	for _, p := range []*process{c.api, c.etcd} {
		if p != nil {
			p.kill()
		}
	}
	c.client.CloseIdleConnections()
	c.space.close()
	return os.RemoveAll(c.dir)
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
	if err := c.startAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) socket() string          { return filepath.Join(c.dir, "etcd.sock") }
func (c *Cluster) log(name string) string  { return filepath.Join(c.dir, name+".log") }
func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

// component starts one of Kubernetes' components.
func (c *Cluster) component(name string, args ...string) (*process, error) {
	return c.space.spawn(name, c.log(name), exec.Command(c.Hyperkube, append([]string{name}, args...)...))
}

// dial connects to an address of the cluster.
func (c *Cluster) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = c.space.do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (c *Cluster) startAPI(ctx context.Context) (err error) {
	c.api, err = c.component("kube-apiserver", append([]string{
		"--etcd-servers=unix://" + c.socket(),
		"--tls-cert-file=" + c.file(servingCert), "--tls-private-key-file=" + c.file(servingKey),
		"--token-auth-file=" + c.file(tokenFile),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.file(accountKey), "--service-account-signing-key-file=" + c.file(accountKey),
		"--service-cluster-ip-range=" + serviceNetwork.String(), "--allow-privileged", "--profiling=false",
	}, c.flags...)...)
	if err != nil {
		return err
	}
	status := 0
	err = poll(ctx, "kube-apiserver is ready", func() (err error) {
		if status, _, err = c.request(ctx, http.MethodGet, "/readyz", nil); err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d", status)
		}
		return err
	}, c.etcd, c.api)
	return err
}

// poll waits until ask has no error any more, for things that tell nobody when they are ready. The processes are those that
// must live until then.
func poll(ctx context.Context, what string, ask func() error, of ...*process) error {
	for start := time.Now(); ; {
		err := ask()
		if err == nil {
			return nil
		}
		for _, p := range of {
			if p.ended() {
				return p.early()
			}
		}
		if time.Since(start) > readyTimeout {
			return fmt.Errorf("not after %s: %s: %w", readyTimeout, what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// install applies deploy/crd and waits until its types are served.
func (c *Cluster) install(ctx context.Context) error {
	crds := filepath.Join(folder(), "../../deploy/crd")
	if files, _ := filepath.Glob(filepath.Join(crds, "*.yaml")); len(files) == 0 {
		return fmt.Errorf("no CustomResourceDefinition in %s", crds)
	}
	if _, err := c.kubectl(ctx, "", "apply", "-f", crds); err != nil {
		return err
	}
	_, err := c.kubectl(ctx, "", "wait", "--for=condition=Established", "--timeout=60s", "-f", crds)
	return err
}

// folder is where this package's source lies.
func folder() string { return filepath.Join(gobuild.Root(), "e2e", "k8s") }

// BuildUpstream builds Kubernetes' own tests of storage, the program upstream, and agnhost, which runs in their pods. It returns
// the directory.
func BuildUpstream(ctx context.Context) (string, error) { return build(ctx, "upstream") }

// build runs build.sh, which returns at once where everything is built, and returns the directory. Who waits for it is told
// so.
func build(ctx context.Context, what ...string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
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
	cmd := exec.CommandContext(ctx, filepath.Join(folder(), "build.sh"), what...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("e2e/k8s/build.sh: %w:\n%s", err, lastLines(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
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
