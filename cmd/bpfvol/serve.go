// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/csi"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

type serveOptions struct {
	stateOptions
	imageOptions
	pointOptions
	endpoint   string
	nodeID     string
	driverName string
	kubeletDir string
	policyDir  string
	httpAddr   string
}

func newServe() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:     "serve",
		GroupID: "node",
		Short:   "Serve as CSI node plugin",
		Long: strings.TrimSpace(`
Serve answers kubelet's CSI calls on a unix socket. Each volume is decided by the policies of --policy-dir:
without one that allows image, signer, service account and hooks, nothing runs.

SIGTERM lets calls in flight finish and detaches nothing; a restart drops no packet.

With --member-stats, bpfvol status shows what each program returned that shares XDP or TC on an interface with others,
which the kernel runs as one. Counting costs each of them some nanoseconds a packet: make bench BENCH=dispatcher prints
how many.`),
		Example: "  bpfvol serve --node-id $(hostname) --policy-dir /etc/bpfvol/policy.d",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.policyDir == "" {
				return &usageError{errors.New("serve: --policy-dir is missing; policies as cluster objects are not supported yet by this version")}
			}
			if err := needRoot(cmd, "loads programs, attaches them and mounts volumes"); err != nil {
				return err
			}
			return o.run(cmd.Context())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	o.stateOptions.flags(cmd)
	o.imageOptions.nodeFlags(cmd)
	o.pointOptions.flags(cmd)
	hostname, _ := os.Hostname()
	f := cmd.Flags()
	f.StringVar(&o.endpoint, "endpoint", "unix:///run/bpfvol/csi.sock", "`URL` of the CSI socket")
	f.StringVar(&o.nodeID, "node-id", hostname, "`NAME` of this node, as in Kubernetes")
	f.StringVar(&o.driverName, "driver-name", "csi.bpfvol.io", "CSI driver `NAME`")
	f.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "kubelet's root `DIR`; targets must lie below its pods directory")
	f.StringVar(&o.policyDir, "policy-dir", "", "`DIR` of BytecodePolicy files, reloaded when they change; required")
	f.StringVar(&o.httpAddr, "http", ":9808", "`ADDRESS` of /metrics, /healthz and /readyz; empty: off")
	klogFlags := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(klogFlags)
	f.AddGoFlag(klogFlags.Lookup("v"))
	f.AddGoFlag(klogFlags.Lookup("vmodule"))
	return cmd
}

// memoryGoal is how much memory the daemon tries to get by with: the collector works harder as it comes nearer. What a
// registry sends may be as large as an object may be, and should not leave as much garbage behind again.
const memoryGoal = 48 << 20

// run serves until ctx ends. The socket answers only after recovery.
func (o *serveOptions) run(ctx context.Context) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryGoal)
	}
	policies, err := verify.OpenDir(o.policyDir, cosign.Compile)
	if err != nil {
		return err
	}
	defer policies.Close()
	// Pulls and watches outlive calls but not the daemon.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	images, err := o.imageOptions.open(background)
	if err != nil {
		return err
	}
	defer images.Close()
	pods, err := filepath.Abs(filepath.Join(o.kubeletDir, "pods"))
	if err != nil {
		return err
	}
	engine, err := node.Open(node.Options{
		StateDir: o.stateDir, BPFFSDir: o.bpffsDir, TargetRoot: pods,
		Images: images, Policies: policies, MemberStats: o.memberStats, LibXDP: o.libxdp,
	})
	if err != nil {
		return err
	}
	if err := engine.Recover(ctx); err != nil {
		return err
	}
	server, err := csi.New(csi.Options{
		Driver: o.driverName, NodeID: o.nodeID, Version: version, Engine: engine, PodsDir: pods,
	})
	if err != nil {
		return err
	}
	watching := make(chan error, 1)
	go func() { watching <- policies.Run(background) }()

	serving, ctx := errgroup.WithContext(ctx)
	serving.Go(func() error { return server.Serve(ctx, o.endpoint) })
	if o.httpAddr != "" {
		serving.Go(func() error { return serveHTTP(ctx, o.httpAddr, engine, policies) })
	}
	// Starting up and recovering makes garbage that an idle daemon would carry for minutes.
	debug.FreeOSMemory()
	klog.FromContext(ctx).Info("starting", "endpoint", o.endpoint, "version", version)
	err = serving.Wait() // calls in flight have ended, so their pulls may
	stop()
	if werr := <-watching; !errors.Is(werr, context.Canceled) {
		err = errors.Join(err, werr)
	}
	return err
}
