// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

// How long to wait before the API server is asked for the policies again. client-go's half a minute is for objects that
// grow old well; these are revoked.
const (
	askAgain     = 500 * time.Millisecond
	askAgainMost = 5 * time.Second
)

// Options configures Policies.
type Options struct {
	Compile verify.Compiler
	// Clock tells how old answers are; nil: the time of day.
	Clock clock.PassiveClock
}

// Policies are the BytecodePolicy objects of a cluster, for whom RBAC lets use them. Run keeps them up to date.
type Policies struct {
	objects dynamic.NamespaceableResourceInterface
	store   *store
	reviews *reviews
}

// Policies returns the cluster's policies, of which none is known before Run has listed them.
func (c *Client) Policies(opts Options) *Policies {
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	return &Policies{
		objects: c.api.Resource(policyResource),
		store:   newStore(opts.Compile),
		reviews: newReviews(c.api.Resource(reviewResource), opts.Clock),
	}
}

// Run keeps the policies up to date until ctx ends. It logs what changes, and each mistake once.
func (p *Policies) Run(ctx context.Context) error {
	log := klog.FromContext(ctx)
	p.store.log = log
	kind := &unstructured.Unstructured{}
	kind.SetAPIVersion(v1alpha1.APIVersion)
	kind.SetKind(v1alpha1.Kind)
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := p.objects.List(ctx, o)
			p.store.asked(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := p.objects.Watch(ctx, o)
			p.store.asked(err)
			return w, err
		},
	}
	cache.NewReflectorWithOptions(source, kind, p.store, cache.ReflectorOptions{
		Logger: &log,
		Name:   "policies",
		Backoff: &wait.Backoff{
			Duration: askAgain, Cap: askAgainMost, Factor: 2, Jitter: 1, Steps: math.MaxInt32,
		},
	}).RunWithContext(ctx)
	return nil
}

// Err is nil when the policies are known, every object is valid and so are the files that they name; else it says what is
// wrong. That the API server is away is no error once they are known.
func (p *Policies) Err() error {
	policies, mistakes, err := p.store.state()
	errs := []error{err, mistakes}
	for _, policy := range policies {
		errs = append(errs, policy.Err())
	}
	return errors.Join(errs...)
}

// For implements verify.Policies.
func (p *Policies) For(ctx context.Context, s verify.Subject, ref image.Reference) ([]*verify.Policy, error) {
	p.store.wait(ctx)
	policies, _, err := p.store.state()
	if err != nil {
		return nil, err
	}
	candidates, err := verify.Candidates(ctx, policies, ref)
	if err != nil {
		return nil, err
	}
	if s.Persistent {
		for _, c := range candidates {
			verify.Trace(ctx, verify.Step{Stage: "subject", Policy: c.Name, OK: true, Text: `is of an admin's PersistentVolume or class, so RBAC is not asked`})
		}
		return candidates, nil
	}
	var usable []*verify.Policy
	var unknown error // of the first policy that RBAC could not be asked about
	closest := ""     // the first policy that is for others
	for i, a := range p.reviews.ask(ctx, s, candidates) {
		c := candidates[i]
		verify.Trace(ctx, step(c.Name, s, a))
		switch {
		case a.err != nil:
			if unknown == nil {
				unknown = a.err
			}
		case a.allowed:
			usable = append(usable, c)
		case closest == "":
			closest = c.Name
		}
	}
	switch {
	case len(usable) > 0:
		return usable, nil
	case unknown != nil:
		return nil, unknown
	}
	return nil, verify.Denied(ref, closest,
		fmt.Sprintf("service account %q may not use policy %q", s, closest),
		fmt.Sprintf("an admin must grant it verb %q on %s/%s", v1alpha1.VerbUse, v1alpha1.Resource, closest))
}

// step is an answer in words.
func step(policy string, s verify.Subject, a answer) verify.Step {
	tell := verify.Step{Stage: "subject", Policy: policy, OK: a.allowed && a.err == nil}
	verdict := "lets"
	switch {
	case a.err != nil:
		tell.Text = a.err.Error()
		return tell
	case !a.allowed:
		verdict = "does not let"
	}
	tell.Text = fmt.Sprintf("RBAC %s service account %q use it", verdict, s)
	if a.why != "" {
		tell.Text += fmt.Sprintf(": %.200q", a.why)
	}
	return tell
}
