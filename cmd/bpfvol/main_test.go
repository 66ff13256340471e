// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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
			// The command mounts a bpffs that stays, and a script that failed leaves its volume: both go with the script.
			env.Defer(func() {
				for _, dir := range []string{"/bpf", "/.BPFFS"} {
					if err := unix.Unmount(env.WorkDir+dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT && err != unix.EPERM {
						t.Error(err)
					}
				}
			})
			env.Setenv("BPFVOL_REGISTRIES", env.WorkDir+"/registries.yaml")
			return os.WriteFile(env.WorkDir+"/registries.yaml", []byte("registries:\n- host: "+host+"\n  plainHTTP: true\n"), 0o644)
		},
		Condition: func(cond string) (bool, error) { return cond == "root" && os.Geteuid() == 0, nil },
	})
}
