// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/cluster"
)

type podsOptions struct {
	kubeconfig string
	driverName string
	none       bool
	out        outputOption
}

func newPods() *cobra.Command {
	var o podsOptions
	cmd := &cobra.Command{
		Use:     "pods",
		GroupID: "cluster",
		Short:   "List the cluster's pods that have volumes of the driver",
		Long: strings.TrimSpace(`
Pods lists those that have volumes of the driver, inline ones or by claims, and that have not ended. Without the driver
kubelet cannot end them: before it is uninstalled, there should be none. With --none it is an error if there are any; the
Helm chart asks so before it uninstalls.

It needs the right to list pods and persistentvolumes.`),
		Example: "  bpfvol pods --kubeconfig ~/.kube/config",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`FILE` that leads to the cluster; default the cluster that this pod runs in")
	f.StringVar(&o.driverName, "driver-name", "csi.bpfvol.io", "CSI driver `NAME`, as of bpfvol serve")
	f.BoolVar(&o.none, "none", false, "exit with an error if there are any")
	o.out.flags(cmd)
	return cmd
}

func (o *podsOptions) run(ctx context.Context, stdout io.Writer) error {
	client, err := cluster.Connect(o.kubeconfig, "bpfvol/"+version)
	if errors.Is(err, cluster.ErrNoCluster) {
		return &usageError{errors.New("pods: this is no pod of a cluster; give --kubeconfig")}
	}
	if err != nil {
		return err
	}
	users, err := client.Users(ctx, o.driverName)
	if err != nil {
		return err
	}
	if err := o.out.print(stdout, users, func(w io.Writer) error { return usersTable(w, users) }); err != nil {
		return err
	}
	if o.none && len(users) > 0 {
		return fmt.Errorf("%d pods have volumes of %s: without the driver kubelet cannot end them; delete them first", len(users), o.driverName)
	}
	return nil
}

func usersTable(w io.Writer, users []cluster.User) error {
	if err := row(w, "NAMESPACE", "POD", "NODE", "VOLUMES"); err != nil {
		return err
	}
	for _, u := range users {
		if err := row(w, u.Namespace, u.Name, u.Node, strings.Join(u.Volumes, ",")); err != nil {
			return err
		}
	}
	return nil
}
