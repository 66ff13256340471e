// SPDX-License-Identifier: Apache-2.0

// Command bpfvol is the node plugin (`bpfvol serve`) and the command line for people: build and sign a bytecode
// image, look into it, run it on this machine, see what runs.
//
// Every verb is a thin layer over the packages that the node plugin uses: flags -> Options -> run.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/flagenv"
)

// version is set by the linker; see Makefile.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
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
	return report(stderr, err)
}

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
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Name() != "serve" { // the daemon logs; a command prints what its user must know
				klog.SetLogger(logr.Discard())
				cmd.SetContext(klog.NewContext(cmd.Context(), logr.Discard()))
			}
			if err := flagenv.Set(cmd.Flags()); err != nil {
				return &usageError{err}
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddGroup(
		&cobra.Group{ID: "node", Title: "Run:"},
		&cobra.Group{ID: "cluster", Title: "In a cluster:"},
		&cobra.Group{ID: "image", Title: "Bytecode images:"},
		&cobra.Group{ID: "look", Title: "Look:"},
	)
	root.AddCommand(
		newServe(), newProvision(), newAdmission(), newPods(),
		newRun(), newPublish(), newUnpublish(), newList(), newStatus(),
		newInspect(), newBuild(), newPush(), newSign(), newVerify(), newKeygen(), newCache(),
		newDump(), newDoctor(),
	)
	return root
}

// unknownCommand refuses what is no verb.
func unknownCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("did you mean %s? ", strings.Join(near, " or "))
	}
	return &usageError{fmt.Errorf("unknown command %q; %ssee %s --help", args[0], hint, root.CommandPath())}
}

// exactArgs is cobra.ExactArgs with the names of what is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		want, got := strings.Join(names, " "), fmt.Sprintf("%d arguments", len(args))
		if want == "" {
			want = "no arguments"
		}
		if len(args) == 1 {
			got = "1 argument"
		}
		return &usageError{fmt.Errorf("%s takes %s, got %s; see %s --help", cmd.Name(), want, got, cmd.CommandPath())}
	}
}
