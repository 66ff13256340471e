// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrationSocket waits for the registration socket of r and returns its path.
func registrationSocket(t *testing.T, r *running) string {
	t.Helper()
	path := filepath.Join(r.server.opts.RegistryDir, "csi.bpfvol.io-reg.sock")
	appears(t, path)
	return path
}

// appears fails the test when path is not there within a second.
func appears(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(path); err == nil {
			return
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// asKubelet calls the registration service at path.
func asKubelet(t *testing.T, path string) registerapi.RegistrationClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		quickRedial, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return registerapi.NewRegistrationClient(conn)
}

// becomes waits until Registered says want, "" for nil.
func becomes(t *testing.T, r *running, want string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		got := ""
		if err := r.server.Registered(); err != nil {
			got = err.Error()
		}
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("Registered = %q, want %q", got, want)
		}
	}
}

func register(t *testing.T, r *running) {
	t.Helper()
	_, err := asKubelet(t, registrationSocket(t, r)).NotifyRegistrationStatus(t.Context(), &registerapi.RegistrationStatus{PluginRegistered: true})
	if err != nil {
		t.Fatal(err)
	}
	becomes(t, r, "")
}

func TestRegistrationLeadsToTheDriver(t *testing.T) {
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}, RegistryDir: t.TempDir()})
	path := registrationSocket(t, r)
	info, err := asKubelet(t, path).GetInfo(t.Context(), &registerapi.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := []string{info.GetType(), info.GetName(), info.GetEndpoint(), strings.Join(info.GetSupportedVersions(), " ")}
	if diff := cmp.Diff([]string{"CSIPlugin", "csi.bpfvol.io", r.socket, "1.0.0"}, got); diff != "" {
		t.Error(diff)
	}
	becomes(t, r, errNotRegistered.Error())
	register(t, r)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestWithoutRegistrationNobodyIsWaitedFor(t *testing.T) {
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}})
	becomes(t, r, "")
}

// The driver's own socket takes calls before kubelet can learn of it: kubelet calls NodeGetInfo at once.
func TestDriverAnswersBeforeItIsRegistered(t *testing.T) {
	dir := t.TempDir()
	s, err := New(Options{Driver: "csi.bpfvol.io", NodeID: "n", Engine: &fakeEngine{}, RegistryDir: filepath.Join(dir, "registry")})
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "unix://" + filepath.Join(dir, "csi.sock")
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, endpoint) }()
	appears(t, filepath.Join(dir, "registry", "csi.bpfvol.io-reg.sock"))
	if err := Probe(t.Context(), endpoint); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestRefusalByKubeletIsSaid(t *testing.T) {
	lines := make(chan string, 16)
	log := funcr.New(func(_, args string) { lines <- args }, funcr.Options{})
	r := serve(t, log, Options{Engine: &fakeEngine{}, RegistryDir: t.TempDir()})
	_, err := asKubelet(t, registrationSocket(t, r)).NotifyRegistrationStatus(t.Context(), &registerapi.RegistrationStatus{
		Error: "RegisterPlugin error -- plugin registration failed with err: nodes \"n\"\nnot found",
	})
	if err != nil {
		t.Fatal(err)
	}
	becomes(t, r, `kubelet has refused to register the driver: "RegisterPlugin error -- plugin registration failed with err: nodes \"n\" not found"; kubelet tries again`)
	if line := <-lines; !strings.Contains(line, "plugin registration failed") || !strings.Contains(line, "driver not registered") {
		t.Errorf("logged %s", line)
	}
	register(t, r) // by kubelet's next attempt
}

func TestRegistrationSocketComesBack(t *testing.T) {
	for what, remove := range map[string]func(path string) error{
		"the socket":    os.Remove,
		"its directory": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
	} {
		t.Run(what, func(t *testing.T) {
			r := serve(t, quiet(), Options{Engine: &fakeEngine{}, RegistryDir: filepath.Join(t.TempDir(), "registry")})
			register(t, r)
			path := registrationSocket(t, r)
			if err := remove(path); err != nil {
				t.Fatal(err)
			}
			appears(t, path)
			becomes(t, r, errNotRegistered.Error())
			register(t, r)
		})
	}
}

func TestStaleRegistrationSocketIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "csi.bpfvol.io-reg.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}, RegistryDir: dir})
	becomes(t, r, errNotRegistered.Error())
	register(t, r)
}

// The sidecar node-driver-registrar has a socket of the same name. It keeps it as long as it lives.
func TestRegistrationSocketOfOthersStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "csi.bpfvol.io-reg.sock")
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}, RegistryDir: dir})
	becomes(t, r, "registration socket "+path+": another process answers here; stop it first")
	other.Close()
	becomes(t, r, errNotRegistered.Error())
	register(t, r)

	if other, err = net.Listen("unix", path+".new"); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	becomes(t, r, "registration socket "+path+": another process answers here; stop it first")
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the other's socket: %v", err)
	}
}

func TestRegistrationNeedsAPathThatASocketCanHave(t *testing.T) {
	for _, dir := range []string{"relative", "/" + strings.Repeat("x", 90)} {
		if _, err := New(Options{Driver: "csi.bpfvol.io", NodeID: "n", Engine: &fakeEngine{}, RegistryDir: dir}); err == nil {
			t.Errorf("%s was taken", dir)
		}
	}
}

func TestProbeNeedsAnAnswer(t *testing.T) {
	// A driver that recovers is alive.
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}, Ready: func() bool { return false }})
	endpoint := "unix://" + r.socket
	if err := Probe(t.Context(), endpoint); err != nil {
		t.Error(err)
	}
	// It lives, but nobody can call it any more.
	if err := os.Remove(r.socket); err != nil {
		t.Fatal(err)
	}
	err := Probe(t.Context(), endpoint)
	if err == nil || !strings.Contains(err.Error(), "endpoint "+endpoint+": no answer: ") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("removed: %v", err)
	}
	// Somebody listens and never answers.
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := Probe(ctx, endpoint); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("hanging: %v", err)
	}
	if err := Probe(t.Context(), "tcp://127.0.0.1:1"); err == nil {
		t.Error("no socket: taken")
	}
}
