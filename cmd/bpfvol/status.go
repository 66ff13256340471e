// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
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
List shows every volume that was published here, by kubelet for a pod or by hand ("local"): its image, whether it is
whole, and where it is mounted. JSON and YAML have all of the record, such as attributes, digest, policy and signer.`),
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
	if err := row(w, "OWNER", "IMAGE", "STATE", "TARGET"); err != nil {
		return err
	}
	for _, v := range volumes {
		state := string(v.State)
		if !v.Mounted {
			state += ", not mounted"
		}
		if err := row(w, owner(v.Pod), v.Image, state, v.Target); err != nil {
			return err
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

func newStatus() *cobra.Command {
	var o stateOptions
	var out outputOption
	cmd := &cobra.Command{
		Use:     "status",
		GroupID: "look",
		Short:   "Show what runs where: each point, and its members in order",
		Long: strings.TrimSpace(`
Status asks the kernel what runs at each hook and interface, for whom, and from which image. It counts runs where
sysctl kernel.bpf_stats_enabled is 1. A point is SEVERED when its interface is gone.`),
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			points, err := o.look().Status()
			if err != nil {
				return orRoot(err)
			}
			if points == nil {
				points = []node.PointStatus{} // [] in JSON
			}
			return out.print(cmd.OutOrStdout(), points, func(w io.Writer) error { return pointTree(w, points) })
		},
	}
	o.flags(cmd)
	out.flags(cmd)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

func pointTree(w io.Writer, points []node.PointStatus) error {
	if len(points) == 0 {
		_, err := fmt.Fprintln(w, "nothing runs")
		return err
	}
	for _, p := range points {
		severed := ""
		if p.Severed {
			severed = " SEVERED: the interface is gone"
		}
		if _, err := fmt.Fprintf(w, "%s%s%s\n", printable(p.Point), parenthesised(p.Mode), severed); err != nil {
			return err
		}
		for i, m := range p.Members {
			branch := "├─"
			if i == len(p.Members)-1 {
				branch = "└─"
			}
			cells := []any{branch + " " + m.Program, owner(m.Pod), m.Image, fmt.Sprintf("prog %d", m.ProgramID)}
			if m.Priority != nil {
				cells = append(cells, fmt.Sprintf("priority %d proceedOn %v", *m.Priority, m.ProceedOn))
			}
			if m.Runs > 0 {
				cells = append(cells, fmt.Sprintf("%d runs", m.Runs))
			}
			if err := row(w, cells...); err != nil {
				return err
			}
		}
	}
	return nil
}
