// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/node"
)

func newList() *cobra.Command {
	var o stateOptions
	var out outputOption
	cmd := &cobra.Command{
		Use:     "list",
		GroupID: "look",
		Short:   "List the volumes of this node",
		Long: strings.TrimSpace(`
List shows every volume that was published here, by kubelet for a pod or by hand ("local"): its image, where it is
mounted, and its health: ok if it is mounted and each of its programs runs where it was attached, else what is wrong. What
bpfvol serve has not mended within minutes stays so: delete the pod, or unpublish the volume and publish it again. Pods that
share a PersistentVolume have a line each, and its health in common.

JSON and YAML have all of the record, such as attributes, digest, and for each target policy, authority and signer, and with it
"health": {"healthy": false, "problems": ["xdp eth0: nothing runs: the interface is gone"]}.`),
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			volumes, err := o.look().List()
			if err != nil {
				return orRoot(err)
			}
			if volumes == nil {
				volumes = []node.Volume{} // [] in JSON
			}
			return out.print(cmd.OutOrStdout(), volumes, func(w io.Writer) error { return volumeTable(w, volumes) })
		},
	}
	o.flags(cmd)
	out.flags(cmd)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

func volumeTable(w io.Writer, volumes []node.Volume) error {
	if err := row(w, "OWNER", "IMAGE", "STATE", "TARGET", "HEALTH"); err != nil {
		return err
	}
	for _, v := range volumes {
		targets := v.Targets
		if len(targets) == 0 {
			targets = []node.Target{{State: v.State}} // its record cannot be read
		}
		for _, t := range targets {
			if err := row(w, owner(t.Pod), v.Image, t.State, t.Path, v.Health); err != nil {
				return err
			}
		}
	}
	return nil
}

func owner(p node.Pod) string {
	if p.Name == "" {
		return "local"
	}
	return p.Namespace + "/" + p.Name
}
