// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/clock"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/verify"
)

const (
	// How long an answer holds: those of kube-apiserver's own webhook authorizer (--authorization-webhook-cache-*-ttl).
	allowedFor = 5 * time.Minute
	deniedFor  = 30 * time.Second
	// remembered bounds the answers that are kept: a node has hundreds of pods, and some policies cover the image of each.
	remembered = 4096
	// atOnce bounds the questions of one publish that are under way.
	atOnce = 8
)

// reviews asks the API server who may use which policy, and remembers what it answered.
type reviews struct {
	api     dynamic.ResourceInterface
	answers *utilcache.LRUExpireCache // question -> answer
	asking  singleflight.Group
}

// question is what an answer depends on.
type question struct{ policy, namespace, serviceAccount string }

func (q question) String() string { return q.policy + " " + q.namespace + "/" + q.serviceAccount }

// answer is RBAC's, or why there is none.
type answer struct {
	allowed bool
	why     string // in the API server's words
	err     error  // wraps verify.ErrUnavailable, or is that of the caller's context
}

func newReviews(api dynamic.ResourceInterface, clock clock.PassiveClock) *reviews {
	return &reviews{api: api, answers: utilcache.NewLRUExpireCacheWithClock(remembered, clock)}
}

// ask returns an answer for each policy, in their order.
func (r *reviews) ask(ctx context.Context, s verify.Subject, policies []*verify.Policy) []answer {
	out := make([]answer, len(policies))
	if s.Local || s.Namespace == "" || s.ServiceAccount == "" {
		return out // whom RBAC does not know
	}
	slots := make(chan struct{}, atOnce)
	var asking sync.WaitGroup
	for i, p := range policies {
		q := question{p.Name, s.Namespace, s.ServiceAccount}
		if known, ok := r.answers.Get(q); ok {
			out[i] = known.(answer)
			continue
		}
		asking.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			out[i] = r.one(ctx, q)
		})
	}
	asking.Wait()
	return out
}

// one asks once for all who want to know, and waits as long as ctx lets it.
func (r *reviews) one(ctx context.Context, q question) answer {
	answered := r.asking.DoChan(q.String(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerIn)
		defer cancel()
		a, err := r.review(ctx, q)
		if err != nil {
			return nil, err
		}
		lasts := deniedFor
		if a.allowed {
			lasts = allowedFor
		}
		r.answers.Add(q, a, lasts)
		return a, nil
	})
	select {
	case got := <-answered:
		if got.Err != nil {
			return answer{err: fmt.Errorf("policy %q: %w: the API server cannot say whether service account %q may use it: %s; it will be asked again",
				q.policy, verify.ErrUnavailable, q.namespace+"/"+q.serviceAccount, reason(got.Err))}
		}
		return got.Val.(answer)
	case <-ctx.Done():
		return answer{err: ctx.Err()}
	}
}

// review is one SubjectAccessReview. The policy has no namespace, the question has: RBAC then counts what RoleBindings of
// the pod's namespace grant, beside ClusterRoleBindings.
func (r *reviews) review(ctx context.Context, q question) (answer, error) {
	got, err := r.api.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authorization.k8s.io/v1",
		"kind":       "SubjectAccessReview",
		"spec": map[string]any{
			// As the API server itself names a service account (k8s.io/apiserver/pkg/authentication/serviceaccount).
			"user":   "system:serviceaccount:" + q.namespace + ":" + q.serviceAccount,
			"groups": []any{"system:serviceaccounts", "system:serviceaccounts:" + q.namespace, "system:authenticated"},
			"resourceAttributes": map[string]any{
				"verb": v1alpha1.VerbUse, "group": v1alpha1.Group, "version": policyResource.Version, "resource": v1alpha1.Resource,
				"name": q.policy, "namespace": q.namespace,
			},
		},
	}}, metav1.CreateOptions{})
	if err != nil {
		return answer{}, err
	}
	allowed, ok, err := unstructured.NestedBool(got.Object, "status", "allowed")
	if err != nil || !ok {
		return answer{}, errors.New("its SubjectAccessReview has no status.allowed")
	}
	a := answer{allowed: allowed}
	for _, field := range []string{"reason", "evaluationError"} {
		if text, _, _ := unstructured.NestedString(got.Object, "status", field); text != "" {
			a.why = text
		}
	}
	return a, nil
}
