// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/cluster"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// clusterPolicies are the policies of a cluster for as long as a command asks them.
type clusterPolicies struct {
	*cluster.Policies
	stop func()
}

// followCluster does what the node plugin does with a cluster's policies. What that would log, steps has. The caller must
// stop it.
func followCluster(ctx context.Context, kubeconfig string) (*clusterPolicies, error) {
	client, err := cluster.Connect(kubeconfig, "bpfvol/"+version)
	if err != nil {
		return nil, err
	}
	policies := client.Policies(cluster.Options{Compile: cosign.Compile})
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, klog.Logger{}))
	var following errgroup.Group
	following.Go(func() error { return policies.Run(ctx) })
	return &clusterPolicies{policies, func() {
		cancel()
		following.Wait() //nolint:errcheck // that it was stopped
	}}, nil
}

// steps says what is wrong with the objects, or with the files of this machine that they name.
func (p *clusterPolicies) steps() []verify.Step {
	var steps []verify.Step
	for _, err := range parts(p.Err()) {
		steps = append(steps, verify.Step{Stage: "policy", Text: err.Error()})
	}
	return steps
}
