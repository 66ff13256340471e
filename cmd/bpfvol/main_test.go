// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/nobpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// The scripts in testdata run the real command; each file is one thing a user does.

func TestMain(m *testing.M) {
	nobpf.Main(os.Args)
	testscript.Main(checked{m}, map[string]func(){
		"bpfvol": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		},
		// udp ADDR:PORT N: sends N datagrams.
		"udp": func() { exitOn(sendUDP(os.Args[1], os.Args[2])) },
		// await REGEXP CMD ARG...: CMD again and again until it prints what matches. Packets are counted after they were sent.
		"await": func() { exitOn(await(os.Args[1], os.Args[2:])) },
		// nobpf CMD ARG...: CMD as uid 65534 without capabilities and without bpf(2).
		"nobpf": func() {
			cmd := nobpf.Command(os.Args[1:]...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
			if err := cmd.Run(); cmd.ProcessState == nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(cmd.ProcessState.ExitCode())
		},
	})
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func sendUDP(to, times string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	c, err := net.ListenUDP("udp4", nil) // not connected: that nobody listens there is no error
	if err != nil {
		return err
	}
	defer c.Close()
	addr, err := net.ResolveUDPAddr("udp4", to)
	if err != nil {
		return err
	}
	for range n {
		if _, err := c.WriteToUDP(make([]byte, 18), addr); err != nil {
			return err
		}
	}
	return nil
}

func await(pattern string, command []string) error {
	want, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return err
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, err := exec.Command(command[0], command[1:]...).Output()
		if want.Match(out) {
			_, err := os.Stdout.Write(out)
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%q printed for 10 s nothing like %s; last (%v):\n%s", command, pattern, err, out)
		}
	}
}

type checked struct{ m *testing.M }

func (c checked) Run() int { return bpftest.Run(c.m) }

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// For nobpf: its user reaches the commands and the script's files.
			commands, _, _ := strings.Cut(env.Getenv("PATH"), ":")
			for _, dir := range []string{filepath.Dir(commands), filepath.Dir(env.WorkDir), env.WorkDir} {
				if err := os.Chmod(dir, 0o755); err != nil {
					return err
				}
			}
			host := imagetest.Registry(t)
			objects, err := os.Getwd()
			if err != nil {
				return err
			}
			env.Setenv("REGISTRY", host)
			env.Setenv("OBJECTS", objects+"/../../bpf")
			env.Setenv("COSIGN_PASSWORD", "")
			for _, dir := range []string{"STATE", "CACHE", "BPFFS"} {
				env.Setenv("BPFVOL_"+dir+"_DIR", env.WorkDir+"/."+dir)
			}
			// A namespace of this name goes with the script. So does the bpffs that the command mounts, and what is mounted by a
			// script that failed.
			env.Setenv("NETNS", "bpfvol-"+filepath.Base(env.WorkDir))
			env.Defer(func() {
				if err := cleanUp(env.WorkDir, env.Getenv("NETNS")); err != nil {
					t.Error(err)
				}
			})
			// A registry that wants a login, and a docker config that has it.
			private := imagetest.Start(t)
			private.Intercept(imagetest.BasicAuth("alice", "hunter22"))
			env.Setenv("PRIVATE", private.Host)
			login := `{"auths": {"` + private.Host + `": {"username": "alice", "password": "hunter22"}}}`
			if err := os.WriteFile(env.WorkDir+"/login.json", []byte(login), 0o600); err != nil {
				return err
			}
			env.Setenv("BPFVOL_REGISTRIES", env.WorkDir+"/registries.yaml")
			hosts := "registries:\n- host: " + host + "\n  plainHTTP: true\n- host: " + private.Host + "\n  plainHTTP: true\n"
			return os.WriteFile(env.WorkDir+"/registries.yaml", []byte(hosts), 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// pair makes two network namespaces, $NODE and $PEER, with an interface veth0 each, 10.0.0.1 and 10.0.0.2, joined. For
			// nsenter --net=$NODE.
			"pair": func(ts *testscript.TestScript, _ bool, _ []string) {
				node, peer := bpftest.Pair(t)
				ts.Setenv("NODE", node.Path())
				ts.Setenv("PEER", peer.Path())
			},
		},
		Condition: func(cond string) (bool, error) { return cond == "root" && os.Geteuid() == 0, nil },
	})
}

// cleanUp removes a network namespace, if it exists, and what is mounted below a directory.
func cleanUp(dir, netns string) error {
	var errs []error
	if _, err := os.Stat("/run/netns/" + netns); err == nil {
		errs = append(errs, exec.Command("ip", "netns", "del", netns).Run())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	errs = append(errs, err)
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			// What is below another one is gone with it.
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
				errs = append(errs, fmt.Errorf("unmount %s: %w", at, err))
			}
		}
	}
	return errors.Join(errs...)
}
