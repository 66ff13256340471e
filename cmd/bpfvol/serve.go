// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/csi"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/internal/privilege"
	"github.com/bpfvol/bpfvol/internal/probes"
)

type serveOptions struct {
	stateOptions
	imageOptions
	pointOptions
	sourceOptions
	endpoint   string
	nodeID     string
	driverName string
	kubeletDir string
	httpAddr   string
	register   bool
	controller bool
	health     bool
	cacheSize  sizeFlag
	reconcile  node.ReconcileOptions
	interval   time.Duration
}

func newServe() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:     "serve",
		GroupID: "node",
		Short:   "Serve as CSI node plugin",
		Long: strings.TrimSpace(`
Serve answers kubelet's CSI calls on a unix socket. Each volume is decided by policies: without one that allows image,
signer, service account and hooks, nothing runs.

Policies are the BytecodePolicy objects of the cluster that this pod runs in, or that --kubeconfig leads to. A pod may use
one where RBAC grants its service account the verb "use" on it. While the API server is away, the policies stay as they
were, and its answers hold for five minutes. deploy/rbac.yaml has the rights that serve itself needs.
With --policy-dir policies are files, whose subjects say who may use them, and no API server is asked.

With --register it registers itself with kubelet, through a socket in plugins_registry of --kubelet-dir, and needs no
sidecar. In a container, that directory and the one of --endpoint must be mounted at the node's own paths.

In a container, --host-process says where the node is: there volumes are mounted and programs attached, without mount
propagation, and registries and the API server are reached from the container. Serve keeps the capabilities that it
needs and gives up all others, wherever it runs; bpfvol doctor says which are missing.

SIGTERM lets calls in flight finish and detaches nothing; a restart drops no packet. Only one serve works on a
--state-dir; the other commands work beside it.

Once a --repair-interval serve looks whether what runs is what was published. Programs that somebody detached and pins that
somebody removed are brought back, unless --repair=false; a program of somebody else that took the place stays. Volumes of
pods that kubelet knows of no more are taken away after --orphan-grace. docs/recovery.md has the log lines and metrics.

/healthz calls the CSI socket as kubelet does. /readyz says what an admin has to look at: a policy that is no good, or
what kubelet says against the driver.

With --member-stats, bpfvol status shows what each program returned that shares XDP or TC on an interface with others,
which the kernel runs as one. Counting costs each of them some nanoseconds a packet: make bench BENCH=dispatcher prints
how many.`),
		Example: "  bpfvol serve --node-id $NODE_NAME\n  bpfvol serve --node-id $(hostname) --policy-dir /etc/bpfvol/policy.d",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if o.interval <= 0 || o.reconcile.Grace < 0 {
				return errors.New("--repair-interval must be more than 0, and --orphan-grace not less")
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
	f.StringVar(&o.policyDir, "policy-dir", "", "`DIR` of BytecodePolicy files, reloaded when they change; without it policies are objects of the cluster")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`FILE` that leads to the cluster of the policies; default the cluster that this pod runs in")
	f.StringVar(&o.httpAddr, "http", ":9808", "`ADDRESS` of /metrics, /healthz and /readyz; empty: off")
	f.BoolVar(&o.register, "register", false, "register the driver with kubelet; without it, a node-driver-registrar beside this one has to")
	f.BoolVar(&o.controller, "controller", false, "serve CSI's Controller service, too, for a sidecar external-provisioner; bpfvol provision needs none")
	f.BoolVar(&o.health, "volume-health", false,
		"let kubelet ask for the health of volumes, by CSI's GET_VOLUME_HEALTH; off, as this is an alpha feature of CSI 1.13 and of Kubernetes (gate CSIVolumeHealth), and others fail drivers for capabilities that they do not know")
	f.BoolVar(&o.reconcile.Repair, "repair", true, "bring back programs that somebody detached and pins that somebody removed")
	f.DurationVar(&o.interval, "repair-interval", time.Minute, "`TIME` between two looks at whether all volumes are well")
	f.DurationVar(&o.reconcile.Grace, "orphan-grace", 5*time.Minute, "`TIME` after which volumes of pods are taken away that kubelet knows of no more; 0: never")
	o.cacheSize = image.DefaultCacheSize
	f.Var(&o.cacheSize, "cache-size", "`SIZE` of the image cache; images that no volume was made from are removed, the longest unused first")
	klogFlags := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(klogFlags)
	f.AddGoFlag(klogFlags.Lookup("v"))
	f.AddGoFlag(klogFlags.Lookup("vmodule"))
	return cmd
}

// memoryGoal is how much memory the daemon tries to get by with: the collector works harder as it comes nearer. What a
// registry sends may be as large as an object may be, and should not leave as much garbage behind again.
const memoryGoal = 32 << 20

// run serves until ctx ends. The socket answers only after recovery.
func (o *serveOptions) run(ctx context.Context) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryGoal)
	}
	inContainer := o.host != ""
	if err := privilege.Drop(inContainer); err != nil {
		return err
	}
	if lacks := privilege.Missing(inContainer); len(lacks) > 0 {
		klog.FromContext(ctx).Error(nil, "capabilities are missing, so volumes will fail; see bpfvol doctor", "missing", privilege.Names(lacks))
	}
	policies, err := o.sourceOptions.open()
	if err != nil {
		return err
	}
	// Pulls and watches outlive calls but not the daemon.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	images, err := o.imageOptions.open(background)
	if err != nil {
		return err
	}
	defer images.Close()
	kubeletDir, err := filepath.Abs(o.kubeletDir)
	if err != nil {
		return err
	}
	pods, registry := filepath.Join(kubeletDir, "pods"), ""
	if o.register {
		registry = filepath.Join(kubeletDir, "plugins_registry")
	}
	release, err := node.Claim(o.stateDir)
	if err != nil {
		return err
	}
	defer release()
	options := o.stateOptions.options()
	options.TargetRoot, options.Images, options.Policies = pods, images, policies
	options.MemberStats, options.LibXDP = o.memberStats, o.libxdp
	watch := []func(context.Context) error{policies.Run}
	if o.client != nil {
		events := o.client.Events(o.nodeID)
		options.Decided = onPods(events)
		watch = append(watch, events.Run)
	}
	engine, err := node.Open(options)
	if err != nil {
		return err
	}
	watch = append(watch, func(ctx context.Context) error { return tend(ctx, images, o.cacheSize, engine) })
	if err := engine.Recover(ctx); err != nil {
		return err
	}
	reconciler := node.NewReconciler(engine, o.reconcile)
	watch = append(watch, func(ctx context.Context) error { return reconciler.Run(ctx, o.interval) })
	server, err := csi.New(csi.Options{
		Driver: o.driverName, NodeID: o.nodeID, Version: version, Engine: engine, PodsDir: pods, RegistryDir: registry, Controller: o.controller, VolumeHealth: o.health,
	})
	if err != nil {
		return err
	}
	var watching errgroup.Group
	for _, run := range watch {
		watching.Go(func() error { return run(background) })
	}

	serving, ctx := errgroup.WithContext(ctx)
	serving.Go(func() error { return server.Serve(ctx, o.endpoint) })
	if o.httpAddr != "" {
		serving.Go(func() error {
			return probes.Serve(ctx, o.httpAddr, probes.Options{
				Metrics: metrics(engine, reconciler),
				Healthy: func(r *http.Request) error { return csi.Probe(r.Context(), o.endpoint) },
				Ready:   func(*http.Request) error { return errors.Join(policies.Err(), server.Registered()) },
			})
		})
	}
	// Starting up and recovering makes garbage that an idle daemon would carry for minutes.
	debug.FreeOSMemory()
	klog.FromContext(ctx).Info("starting", "endpoint", o.endpoint, "version", version)
	err = serving.Wait() // calls in flight have ended, so their pulls may
	stop()
	if werr := watching.Wait(); !errors.Is(werr, context.Canceled) {
		err = errors.Join(err, werr)
	}
	return err
}
