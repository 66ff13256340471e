// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller/metrics"

	"github.com/bpfvol/bpfvol/internal/probes"
)

// Options configures Run.
type Options struct {
	// Driver is the name that StorageClasses have as their provisioner.
	Driver string
	// Config is the way to the API server.
	Config *rest.Config
	// Namespace is where the Lease is by which several agree who acts; empty: this one acts, whoever else there is.
	Namespace string
	// HTTP is the address of /metrics and /healthz; empty: off.
	HTTP string
}

const (
	// A claim of a bad class is tried again this late, as the class may have been made anew, and its event counted up. There
	// is no end to it: the claim may be older than the class.
	retryFirst, retryAtMost = time.Second, time.Minute

	// Those of Kubernetes' own components (k8s.io/component-base/config).
	leaseDuration, renewDeadline, retryPeriod = 15 * time.Second, 10 * time.Second, 2 * time.Second
)

// errLost means that another acts now. What has been begun cannot be taken up again, so the process has to end.
var errLost = errors.New("the lease was lost: the API server did not answer in time, or another has taken it")

// Run makes and deletes volumes until ctx ends, or until another does.
func Run(ctx context.Context, opts Options) error {
	client, err := kubernetes.NewForConfig(opts.Config)
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	p := &process{opts: opts, client: client, metrics: metrics.New("controller"), leader: leaderelection.NewLeaderHealthzAdaptor(leaseDuration)}
	ctx, stop := context.WithCancelCause(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer stop(nil) // before the wait
	if opts.HTTP != "" {
		beside.Go(func() {
			// One that waits for its turn is healthy.
			if err := probes.Serve(ctx, opts.HTTP, probes.Options{Metrics: p.collectors(), Healthy: p.leader.Check}); err != nil {
				stop(err)
			}
		})
	}
	if opts.Namespace == "" {
		p.work(ctx)
	} else if err := p.lead(ctx); err != nil {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

type process struct {
	opts    Options
	client  kubernetes.Interface
	metrics metrics.Metrics
	leader  *leaderelection.HealthzAdaptor
}

func (p *process) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		p.metrics.PersistentVolumeClaimProvisionTotal, p.metrics.PersistentVolumeClaimProvisionFailedTotal,
		p.metrics.PersistentVolumeClaimProvisionDurationSeconds,
		p.metrics.PersistentVolumeDeleteTotal, p.metrics.PersistentVolumeDeleteFailedTotal,
		p.metrics.PersistentVolumeDeleteDurationSeconds,
	}
}

// work works until ctx ends and what was begun is done.
func (p *process) work(ctx context.Context) {
	limiter := func() workqueue.TypedRateLimiter[string] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryFirst, retryAtMost)
	}
	var workers sync.WaitGroup
	c := controller.NewProvisionController(ctx, p.client, p.opts.Driver, &provisioner{p.opts.Driver},
		controller.LeaderElection(false), // ours gives the lease back
		controller.RateLimiter(limiter()), controller.CreateProvisionedPVLimiter(limiter()),
		controller.FailedProvisionThreshold(0), controller.FailedDeleteThreshold(0),
		controller.MetricsInstance(p.metrics),
	)
	c.ControllerWaitGroup(&workers)
	c.Run(ctx)
	workers.Wait()
}

// lead waits until nobody else acts, and then works. The lease is given back when that has ended, so that the next
// need not wait for it to run out.
func (p *process) lead(ctx context.Context) error {
	identity, err := identity()
	if err != nil {
		return err
	}
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	var mu sync.Mutex // held while working
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: p.opts.Namespace, Name: leaseName(p.opts.Driver)},
			Client:     p.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				mu.Lock()
				defer mu.Unlock()
				working, stop := context.WithCancel(leading)
				defer stop()
				defer context.AfterFunc(ctx, stop)()
				p.work(working)
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(who string) {
				klog.FromContext(ctx).Info("leader", "identity", who, "this", who == identity)
			},
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	p.leader.SetLeaderElection(elector)
	defer context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		release()
	})()
	elector.Run(holding)
	if ctx.Err() == nil {
		return errLost
	}
	return nil
}

func leaseName(driver string) string { return "provisioner-" + driver }

func identity() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	return host + "_" + string(uuid.NewUUID()), nil // two may run on one host
}
