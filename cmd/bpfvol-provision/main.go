// SPDX-License-Identifier: Apache-2.0

// Command bpfvol-provision is what `bpfvol provision` runs: a binary of its own, for what it links
// (docs/adr/0003-provisioner-is-a-binary-of-its-own.md).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/cluster"
	"github.com/bpfvol/bpfvol/internal/flagenv"
	"github.com/bpfvol/bpfvol/internal/provision"
)

// version is set by the linker; see Makefile.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait
	err := newRoot().ExecuteContext(ctx)
	klog.Flush()
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "bpfvol: %v\n", err)
	if errors.As(err, new(*usageError)) {
		os.Exit(2)
	}
	os.Exit(1)
}

// usageError is a mistake in how the command was called.
type usageError struct{ error }

type options struct {
	driver     string
	kubeconfig string
	namespace  string
	http       string
	alone      bool
}

func newRoot() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "provision",
		Short: "Make PersistentVolumes for claims of StorageClasses",
		Long: strings.TrimSpace(`
Provision gives every PersistentVolumeClaim of a StorageClass whose provisioner is --driver-name its PersistentVolume: the
class's parameters become the attributes of the volume, by which the node plugin of any node runs it. Nothing else is
made, so it needs no rights on nodes, and claims that are bound go on without it. A class that no node could run is
refused in the events of its claims.

The parameters csi.storage.k8s.io/node-publish-secret-name and -namespace name the Secret with the logins for the registry,
with the templates that external-provisioner knows.

Of several with the same --driver-name and --namespace, one works and the others wait. deploy/provision-rbac.yaml has the
rights that it needs.`),
		Example: "  bpfvol provision\n  bpfvol provision --kubeconfig ~/.kube/config --namespace bpfvol-system",
		Version: version,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{fmt.Errorf("provision takes no arguments, got %q; see bpfvol provision --help", args[0])}
			}
			return nil
		},
		SilenceUsage: true, SilenceErrors: true,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := flagenv.Set(cmd.Flags()); err != nil {
				return &usageError{err}
			}
			return nil
		},
		RunE:              func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Annotations:       map[string]string{cobra.CommandDisplayNameAnnotation: "bpfvol provision"},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w; see bpfvol provision --help", err)}
	})
	f := cmd.Flags()
	f.StringVar(&o.driver, "driver-name", "csi.bpfvol.io", "CSI driver `NAME`, which StorageClasses have as provisioner")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`FILE` that leads to the cluster; default the cluster that this pod runs in")
	f.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "`NAME` of the namespace of the lease by which several agree who works; default that of this pod")
	f.BoolVar(&o.alone, "alone", false, "do without a lease: there is no other")
	f.StringVar(&o.http, "http", ":9809", "`ADDRESS` of /metrics and /healthz; empty: off")
	klogFlags := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(klogFlags)
	f.AddGoFlag(klogFlags.Lookup("v"))
	f.AddGoFlag(klogFlags.Lookup("vmodule"))
	return cmd
}

// ownNamespace is that of the pod that this process runs in.
const ownNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

func (o *options) run(ctx context.Context) error {
	config, err := cluster.Config(o.kubeconfig, "bpfvol-provision/"+version)
	if errors.Is(err, cluster.ErrNoCluster) {
		return &usageError{errors.New("provision: this is no pod of a cluster; give --kubeconfig")}
	}
	if err != nil {
		return err
	}
	switch {
	case o.alone && o.namespace != "":
		o.namespace = ""
	case !o.alone && o.namespace == "":
		name, err := os.ReadFile(ownNamespace)
		if err != nil {
			return &usageError{errors.New("provision: give --namespace, where the lease is to be, or --alone")}
		}
		o.namespace = strings.TrimSpace(string(name))
	}
	klog.FromContext(ctx).Info("starting", "driver", o.driver, "lease", o.namespace, "version", version)
	return provision.Run(ctx, provision.Options{Driver: o.driver, Config: config, Namespace: o.namespace, HTTP: o.http})
}
