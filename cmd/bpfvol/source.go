// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/bpfvol/bpfvol/internal/cluster"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// policySource is where the daemon's policies come from: a directory, or the objects of a cluster.
type policySource interface {
	verify.Policies
	// Run keeps the policies up to date until ctx ends.
	Run(ctx context.Context) error
	// Err says what keeps policies from being in force; nil: nothing.
	Err() error
}

// sourceOptions say where the daemon's policies come from.
type sourceOptions struct {
	policyDir  string
	kubeconfig string
	client     *cluster.Client // nil: files
}

// check finds the cluster, if policies come from there. It asks it nothing.
func (o *sourceOptions) check() (err error) {
	switch {
	case o.policyDir == "":
		o.client, err = cluster.Connect(o.kubeconfig, "bpfvol/"+version)
	case o.kubeconfig != "":
		return &usageError{errors.New("serve: policies come from --policy-dir or from the cluster of --kubeconfig; leave one out")}
	}
	if errors.Is(err, cluster.ErrNoCluster) {
		return &usageError{errors.New("serve: this is no pod of a cluster, so it has no BytecodePolicy objects; give --policy-dir, or --kubeconfig")}
	}
	return err
}

// open returns the policies; of a cluster, none is known before Run has asked.
func (o *sourceOptions) open() (policySource, error) {
	if o.client != nil {
		return o.client.Policies(cluster.Options{Compile: cosign.Compile}), nil
	}
	dir, err := verify.OpenDir(o.policyDir, cosign.Compile)
	if err != nil {
		return nil, err
	}
	return dir, nil
}

// onPods posts each refusal as an event on its pod.
func onPods(events *cluster.Events) func(context.Context, node.Decision) {
	return func(_ context.Context, d node.Decision) {
		if d.Result() == node.Refused {
			events.Refused(cluster.Pod{Namespace: d.Pod.Namespace, Name: d.Pod.Name, UID: d.Pod.UID}, d.Err.Error())
		}
	}
}
