// SPDX-License-Identifier: Apache-2.0

// Package stack sets up everything that one node needs, for the demo, the benchmarks and the end-to-end tests: a
// registry over real HTTP, a signing key, a policy directory and the real `bpfvol serve`, all below one directory
// and, where the caller wants it, inside a network namespace of its own.
package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
)

// Options configures a Stack.
type Options struct {
	// Bin is the bpfvol binary to run.
	Bin string
	// NetNS is a network namespace, by its name under /run/netns or by a path, for the registry, the daemon and every
	// command; empty: the caller's own. The namespace must have its loopback up.
	NetNS string
	// Registry comes before the registry and may answer in its place; nil: nothing does.
	Registry func(http.Handler) http.Handler
	// Serve are further arguments of `bpfvol serve`. They come last, so they count: {"--policy-dir", "", "--kubeconfig", file}
	// takes the policies of a cluster.
	Serve []string
	// HostProcess is --host-process of the daemon and every command; empty: they are on the node.
	HostProcess string
	// Start starts the daemon's process; nil: as it is.
	Start func(*exec.Cmd) error
	// Log receives what the daemon writes; nil: kept, see DaemonLog.
	Log io.Writer
	// Verbosity of the daemon's log.
	Verbosity int
}

// Stack is a node in a directory.
type Stack struct {
	opts     Options
	Dir      string // holds everything below
	Registry string // host:port
	server   *http.Server
	daemon   *exec.Cmd
	exited   chan error
	log      bytes.Buffer
}

// New starts the registry and makes a key (COSIGN_PASSWORD empty), an empty policy directory and a registries file.
// The caller must Close the stack.
func New(opts Options) (s *Stack, err error) {
	dir, err := os.MkdirTemp("", "bpfvol-")
	if err != nil {
		return nil, err
	}
	if opts.Bin, err = filepath.Abs(opts.Bin); err != nil {
		return nil, err
	}
	s = &Stack{opts: opts, Dir: dir}
	// What a container sees lies below, and its user is nobody.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := os.Mkdir(s.run(), 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", s.run(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64m"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs at %s: %w", s.run(), err)
	}
	for _, d := range []string{s.StateDir(), s.PolicyDir(), s.KubeletDir()} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := s.startRegistry(); err != nil {
		return nil, err
	}
	hosts := fmt.Sprintf("registries:\n- host: %s\n  plainHTTP: true\n", s.Registry)
	if err := os.WriteFile(s.RegistriesFile(), []byte(hosts), 0o644); err != nil {
		return nil, err
	}
	_, err = s.CLI(context.Background(), "keygen", "--prefix", s.KeyPrefix())
	return s, err
}

// run is a tmpfs. As in production the records lie on one, which a reboot clears; kubelet's directories do so that
// the time a disk takes for them counts as nobody's.
func (s *Stack) run() string { return filepath.Join(s.Dir, "run") }

func (s *Stack) StateDir() string       { return filepath.Join(s.run(), "state") }
func (s *Stack) BPFFSDir() string       { return filepath.Join(s.Dir, "bpffs") }
func (s *Stack) CacheDir() string       { return filepath.Join(s.Dir, "cache") }
func (s *Stack) KubeletDir() string     { return filepath.Join(s.run(), "kubelet") }
func (s *Stack) PolicyDir() string      { return filepath.Join(s.Dir, "policy.d") }
func (s *Stack) RegistriesFile() string { return filepath.Join(s.Dir, "registries.yaml") }
func (s *Stack) Endpoint() string       { return "unix://" + filepath.Join(s.StateDir(), "csi.sock") }

// Kept are the directories where the daemon and kubelet keep what belongs to a volume.
func (s *Stack) Kept() []string {
	return []string{filepath.Join(s.StateDir(), "volumes"), filepath.Join(s.StateDir(), "locks"), s.BPFFSDir(), s.KubeletDir()}
}

// KeyPrefix is the path of the signing key without .key and .pub.
func (s *Stack) KeyPrefix() string { return filepath.Join(s.Dir, "demo") }

// InNetNS calls f on a thread inside the stack's network namespace. Sockets and processes that f makes stay there.
func (s *Stack) InNetNS(f func() error) error {
	if s.opts.NetNS == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// The thread is not unlocked: it ends with the goroutine, so nothing else ever runs in the namespace.
		runtime.LockOSThread()
		open := netns.GetFromName
		if filepath.IsAbs(s.opts.NetNS) {
			open = netns.GetFromPath
		}
		ns, err := open(s.opts.NetNS)
		if err != nil {
			done <- fmt.Errorf("netns %s: %w", s.opts.NetNS, err)
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("netns %s: %w", s.opts.NetNS, err)
			return
		}
		done <- f()
	}()
	return <-done
}

func (s *Stack) startRegistry() error {
	var l net.Listener
	if err := s.InNetNS(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		return err
	}
	s.Registry = l.Addr().String()
	quiet := log.New(io.Discard, "", 0)
	handler := registry.New(registry.Logger(quiet), registry.WithReferrersSupport(true))
	if s.opts.Registry != nil {
		handler = s.opts.Registry(handler)
	}
	s.server = &http.Server{Handler: handler, ErrorLog: quiet, ReadHeaderTimeout: 5 * time.Second}
	go s.server.Serve(l) //nolint:errcheck // ends with Close
	return nil
}

// CLI runs bpfvol with args in the stack's namespace and returns its standard output. The cache and the registries
// file are the stack's. On failure the error is what the command printed.
func (s *Stack) CLI(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := s.Command(ctx, s.opts.Bin, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := s.InNetNS(cmd.Run); err != nil {
		text := strings.TrimSpace(stderr.String())
		return stdout.String(), fmt.Errorf("bpfvol %s: %w: %s", args[0], err, text)
	}
	return stdout.String(), nil
}

// Command prepares a process with the environment of the stack. Start it inside InNetNS.
func (s *Stack) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=",
		"BPFVOL_CACHE_DIR="+s.CacheDir(), "BPFVOL_REGISTRIES="+s.RegistriesFile(),
		"BPFVOL_STATE_DIR="+s.StateDir(), "BPFVOL_BPFFS_DIR="+s.BPFFSDir(), "BPFVOL_HOST_PROCESS="+s.opts.HostProcess)
	return cmd
}

// StartDaemon starts `bpfvol serve` and returns when its socket answers.
func (s *Stack) StartDaemon(ctx context.Context) (ready time.Duration, err error) {
	args := []string{"serve", "--endpoint", s.Endpoint(), "--node-id", "node", "--kubelet-dir", s.KubeletDir(),
		"--policy-dir", s.PolicyDir(), "--http", "", "--v", fmt.Sprint(s.opts.Verbosity)}
	s.daemon = s.Command(context.WithoutCancel(ctx), s.opts.Bin, append(args, s.opts.Serve...)...)
	s.daemon.Stderr = &s.log
	if s.opts.Log != nil {
		s.daemon.Stderr = s.opts.Log
	}
	start := (*exec.Cmd).Start
	if s.opts.Start != nil {
		start = s.opts.Start
	}
	started := time.Now()
	if err := s.InNetNS(func() error { return start(s.daemon) }); err != nil {
		s.daemon = nil
		return 0, err
	}
	s.exited = make(chan error, 1)
	// A daemon that ends instead of answering ends the wait.
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		err := s.daemon.Wait()
		cancel()
		s.exited <- err
	}()
	k, err := kubelet.Connect(waiting, s.Endpoint(), s.KubeletDir())
	if err != nil {
		if waiting.Err() != nil && ctx.Err() == nil {
			err = <-s.exited
			s.daemon = nil
		}
		return 0, fmt.Errorf("bpfvol serve: %w: %s", err, s.log.String())
	}
	return time.Since(started), k.Close()
}

// DaemonPID is the process id of the running daemon.
func (s *Stack) DaemonPID() int { return s.daemon.Process.Pid }

// Running says whether the daemon that StartDaemon started still runs.
func (s *Stack) Running() bool { return s.daemon != nil && len(s.exited) == 0 }

// DaemonLog is what the daemon has written. Call it after StopDaemon.
func (s *Stack) DaemonLog() string { return s.log.String() }

// StopDaemon sends sig and waits for the end. With SIGTERM the daemon must end with status 0.
func (s *Stack) StopDaemon(sig syscall.Signal) error {
	if s.daemon == nil {
		return nil
	}
	if err := s.daemon.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	err := <-s.exited
	s.daemon = nil
	if sig == syscall.SIGKILL {
		return nil
	}
	return err
}

// Close ends the daemon and the registry and removes the directory with its mounts. It does not unpublish: what a
// test forgot shows as a leftover.
func (s *Stack) Close() error {
	err := s.StopDaemon(syscall.SIGTERM)
	if s.server != nil {
		err = errors.Join(err, s.server.Close())
	}
	for _, dir := range []string{s.BPFFSDir(), s.run()} {
		err = errors.Join(err, unmount(dir))
	}
	// A mount that is left below must not be emptied by removing its files.
	if mounts, merr := os.ReadFile("/proc/self/mountinfo"); merr == nil && bytes.Contains(mounts, []byte(" "+s.Dir+"/")) {
		return errors.Join(err, fmt.Errorf("mounts are left below %s", s.Dir))
	}
	return errors.Join(err, os.RemoveAll(s.Dir))
}

// unmount unmounts dir where something is mounted. Others who look at every mount of the machine keep it busy for a moment.
func unmount(dir string) error {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY), time.Now().After(deadline):
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}
