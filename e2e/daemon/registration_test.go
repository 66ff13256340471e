// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

// registering starts a node whose daemon registers itself, and returns the address of its /healthz and /readyz.
func registering(t *testing.T) (n *nodetest.Node, web string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web = l.Addr().String()
	l.Close()
	return nodetest.Start(t, nodetest.Options{Serve: []string{"--register", "--http", web}}), web
}

func registrationSocket(n *nodetest.Node) string {
	return filepath.Join(n.KubeletDir(), "plugins_registry", "csi.bpfvol.io-reg.sock")
}

// answers waits until path of web answers with status and a text that has want in it.
func answers(t *testing.T, web, path string, status int, want string) {
	t.Helper()
	got := ""
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + web + path)
		if err != nil {
			got = err.Error()
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got = fmt.Sprintf("%d %s", resp.StatusCode, body); resp.StatusCode == status && strings.Contains(string(body), want) {
			return
		}
	}
	t.Fatalf("%s answers %q, want %d %q", path, got, status, want)
}

// A driver's life as kubelet sees it, each end included.
func TestKubeletRegistersTheDriver(t *testing.T) {
	n, web := registering(t)
	answers(t, web, "/readyz", http.StatusServiceUnavailable, "kubelet has not registered the driver yet")
	kubelet := n.StartPlugins(t, "node")
	kubelet.Wait(t, "csi.bpfvol.io=node")
	answers(t, web, "/readyz", http.StatusOK, "ok")

	// Somebody cleans up too much.
	socket := registrationSocket(n)
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	removed := time.Now()
	for {
		if _, err := os.Lstat(socket); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
		if time.Since(removed) > time.Second {
			t.Fatal("a second after its removal the registration socket is not back")
		}
	}
	kubelet.Wait(t)
	kubelet.Wait(t, "csi.bpfvol.io=node")
	answers(t, web, "/readyz", http.StatusOK, "ok")

	// A killed daemon leaves both sockets, and its place to the next.
	n.StopDaemon(t, syscall.SIGKILL)
	for _, path := range []string{socket, strings.TrimPrefix(n.Endpoint(), "unix://")} {
		if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
			t.Fatalf("%s: %v, %v; want a socket that is stale", path, info, err)
		}
	}
	n.StartDaemon(t)
	kubelet.Wait(t)
	kubelet.Wait(t, "csi.bpfvol.io=node")
	answers(t, web, "/readyz", http.StatusOK, "ok")

	n.StopDaemon(t, syscall.SIGTERM)
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("after SIGTERM the registration socket is still there: %v", err)
	}
	kubelet.Wait(t)
}

func TestKubeletsRefusalIsTheAnswerOfReadyz(t *testing.T) {
	n, web := registering(t)
	n.StartPlugins(t, "")
	answers(t, web, "/readyz", http.StatusServiceUnavailable,
		`kubelet has refused to register the driver: "RegisterPlugin error -- plugin registration failed with err: error updating Node object`)
	answers(t, web, "/healthz", http.StatusOK, "ok") // a restart would not help
	n.StopDaemon(t, syscall.SIGTERM)
	if log := n.DaemonLog(); !strings.Contains(log, "driver not registered with kubelet") || !strings.Contains(log, "error updating Node object") {
		t.Error("kubelet's words are not in the log")
	}
}

// Whoever is told of the driver finds a node where the leftovers of the last run are gone.
func TestDriverIsRegisteredAfterRecovery(t *testing.T) {
	n, _ := registering(t)
	image := n.Signed(t, "hooks", object("hooks"))
	var volumes []*nodetest.Volume
	for range 5 {
		volumes = append(volumes, n.Publish(t, map[string]string{"image": image, "attach": onGetpgid}))
	}
	n.StopDaemon(t, syscall.SIGKILL)
	for _, v := range volumes {
		if err := unix.Unmount(v.Target, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	socket := registrationSocket(n)
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	pins := make(chan []os.DirEntry, 1)
	go func() {
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
			if _, err := os.Lstat(socket); err == nil {
				break
			}
		}
		entries, err := os.ReadDir(filepath.Join(n.BPFFSDir(), "volumes"))
		if err != nil {
			t.Error(err)
		}
		pins <- entries
	}()
	n.StartDaemon(t)
	if left := <-pins; len(left) > 0 {
		t.Errorf("registered with %d of %d volumes still to take away", len(left), len(volumes))
	}
	for _, v := range volumes {
		if err := v.TearDown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestHealthzNeedsTheSocket(t *testing.T) {
	n, web := registering(t)
	answers(t, web, "/healthz", http.StatusOK, "ok")
	if err := os.Remove(strings.TrimPrefix(n.Endpoint(), "unix://")); err != nil {
		t.Fatal(err)
	}
	answers(t, web, "/healthz", http.StatusServiceUnavailable, "no such file or directory")
	n.StopDaemon(t, syscall.SIGTERM) // as kubelet does then
	n.StartDaemon(t)
	answers(t, web, "/healthz", http.StatusOK, "ok")
}

func TestSecondDaemonIsRefused(t *testing.T) {
	n := nodetest.Start(t, nodetest.Options{})
	image := n.Signed(t, "hooks", object("hooks"))
	v := n.Publish(t, map[string]string{"image": image, "attach": onGetpgid})
	second := func() error {
		_, err := n.CLI(t.Context(), "serve", "--endpoint", n.Endpoint()+"2", "--node-id", "node", "--kubelet-dir", n.KubeletDir(),
			"--policy-dir", n.PolicyDir(), "--http", "")
		return err
	}
	want := fmt.Sprintf(`state directory %s: another bpfvol serve works on it: "pid %d on `, n.StateDir(), n.DaemonPID())
	if err := second(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s...", err, want)
	}
	// The first and its volume did not notice, and the command line works beside it.
	hits(t, v, 0)
	beside := filepath.Join(t.TempDir(), "bpf")
	n.Run(t, "publish", image, "--key", n.KeyPrefix()+".pub", "--attach", "{program: on_raw_tracepoint, rawTracepoint: sys_enter}", beside)
	n.Run(t, "unpublish", beside)
	if err := v.TearDown(t.Context()); err != nil {
		t.Error(err)
	}
	// A killed daemon is no other daemon.
	n.StopDaemon(t, syscall.SIGKILL)
	n.StartDaemon(t)
}
