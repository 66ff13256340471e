// SPDX-License-Identifier: Apache-2.0

// Command bpfvol is the node plugin (`bpfvol serve`) and the command line for people: build and sign a bytecode
// image, look into it, run it on this machine, see what runs.
//
// Every verb is a thin layer over the packages that the node plugin uses: flags -> Options -> run.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// version is set by the linker; see Makefile.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process: it returns the exit status. Results go to stdout, everything else to stderr.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	klog.Flush()
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "bpfvol: %v\n", err)
	var usage *usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

// usageError is a mistake in how the command was called.
type usageError struct{ error }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "bpfvol",
		Short: "eBPF programs as Kubernetes volumes",
		Long: strings.TrimSpace(`
bpfvol runs signed eBPF programs as volumes: a directory that shows the program's maps
to readers without any privilege, and takes the program away when it goes.

In Kubernetes the node plugin does it for pods (bpfvol serve). On one machine:

  bpfvol keygen                                      make a signing key
  bpfvol build count.bpf.o -t localhost/count:v1     make a bytecode image
  bpfvol sign localhost/count:v1 --key bpfvol.key    sign it
  bpfvol run localhost/count:v1 --key bpfvol.pub \
    --attach '{program: count, xdp: {interface: veth0}}' /run/count
  cat /run/count/json/flows

Every flag can be given as environment variable: --state-dir as BPFVOL_STATE_DIR.`),
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Name() != "serve" { // the daemon logs; a command prints what its user must know
				cmd.SetContext(klog.NewContext(cmd.Context(), logr.Discard()))
			}
			return flagsFromEnvironment(cmd.Flags())
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddGroup(
		&cobra.Group{ID: "node", Title: "Run:"},
		&cobra.Group{ID: "image", Title: "Bytecode images:"},
		&cobra.Group{ID: "look", Title: "Look:"},
	)
	root.AddCommand(
		newServe(),
		newRun(), newPublish(), newUnpublish(), newList(), newStatus(),
		newInspect(), newBuild(), newPush(), newSign(), newVerify(), newKeygen(),
		newDump(), newDoctor(),
	)
	return root
}

// flagsFromEnvironment sets each flag that was not given from its BPFVOL_ variable.
func flagsFromEnvironment(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := "BPFVOL_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := os.LookupEnv(name); ok && !f.Changed {
			if err := flags.Set(f.Name, value); err != nil {
				errs = append(errs, &usageError{fmt.Errorf("%s: %w", name, err)})
			}
		}
	})
	return errors.Join(errs...)
}

// exactArgs is cobra.ExactArgs with the names of what is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		return &usageError{fmt.Errorf("%s takes %s, got %d arguments; see %s --help",
			cmd.Name(), strings.Join(names, " "), len(args), cmd.CommandPath())}
	}
}
