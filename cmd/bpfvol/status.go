// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func newStatus() *cobra.Command {
	var o stateOptions
	var out outputOption
	cmd := &cobra.Command{
		Use:     "status",
		GroupID: "look",
		Short:   "Show what runs where: each interface and hook, and its programs in order",
		Long:    statusLong(),
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			points, unread := o.look().Status()
			if unread != nil && points == nil {
				return orRoot(unread)
			}
			if points == nil {
				points = []node.PointStatus{} // [] in JSON
			}
			if err := out.print(cmd.OutOrStdout(), points, func(w io.Writer) error { return pointTree(w, points) }); err != nil {
				return err
			}
			return unread
		},
	}
	o.flags(cmd)
	out.flags(cmd)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

// statusLong shows by example what is printed, made by what prints it.
func statusLong() string {
	var tree bytes.Buffer
	err := pointTree(&tree, statusExample)
	text, yerr := yaml.Marshal(statusExample)
	if err := errors.Join(err, yerr); err != nil {
		panic(err)
	}
	return strings.TrimSpace(`
Status asks the kernel what runs at each interface and hook, in the order in which packets meet it, for whom, and from
which image:

` + indent(tree.String()) + `
A program that shares XDP or TC on an interface runs in one of these ways:

  plain   it is the only one there, and attached as it is
  fused   its instructions are part of the one program of the point, which the kernel runs ("prog")
  slot    that program tail-calls it, which costs more; why it cannot be fused comes after it
  idle    it never runs, since a program before it has an empty proceedOn
  libxdp  the interface has the dispatcher of libxdp, and it is a part of that; xdp-loader status shows all parts

Packets and results are there where they are counted: see --member-stats of serve, run and publish. Runs are the kernel's
own count, kept while sysctl kernel.bpf_stats_enabled is 1, of programs that are not fused.

Pods that share a PersistentVolume share what runs: the first is named, and how many more there are.

An interface has the name that it has now, and its network namespace if bpfvol was called in another. A PROBLEM is a point
where not everything is as it should be; bpfvol list says whose health that is.

JSON and YAML have more, such as whole digests. What does not apply is left out. The programID of a member is that of its
own program, loaded alone. As YAML:

` + indent(string(text)))
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + line)
	}
	return b.String()
}

// exampleShared are two pods that share a PersistentVolume.
var exampleShared = []node.Pod{
	{Namespace: "demo", Name: "counter-0", UID: "0b5d4ad2", ServiceAccount: "counter"},
	{Namespace: "demo", Name: "counter-1", UID: "7e10c9b4", ServiceAccount: "counter"},
}

// statusExample is what statusLong shows: two volumes on one interface, one whose interface was deleted, and one at a hook
// without interface. It has every field, which TestStatusExampleHasEveryField sees to.
var statusExample = []node.PointStatus{
	{
		Point: "xdp eth0", Hook: "xdp", Interface: node.Interface{Name: "eth0", Index: 2}, Mode: "native",
		Program: node.LoadedProgram{ID: 58, Name: "bpfvol_xdp"}, LinkID: 12,
		Members: []node.MemberStatus{
			{
				Program: "firewall", Priority: ptr(100), ProceedOn: []volume.Verdict{"pass"},
				VolumeID: "csi-5a1f", Pods: []node.Pod{{Namespace: "demo", Name: "firewall", UID: "5a1f5a60", ServiceAccount: "net"}},
				Image: "ghcr.io/acme/firewall:v1", Digest: digest.FromString("firewall"), ProgramID: 51, Way: dispatcher.Fused,
				Counts: &dispatcher.Counts{Packets: 25, Verdicts: map[string]uint64{"drop": 20, "pass": 5}},
			},
			{
				Program: "parse", Priority: ptr(500), ProceedOn: []volume.Verdict{"pass"},
				VolumeID: "local:/run/parse", Image: "localhost/parse:v1", Digest: digest.FromString("parse"), ProgramID: 54,
				Way: dispatcher.Slot, Why: "it makes tail calls", Runs: 5,
				Counts: &dispatcher.Counts{Packets: 5, Verdicts: map[string]uint64{"pass": 5}},
			},
		},
	},
	{
		Point: "tc wg0 egress", Hook: "tc", Direction: volume.Egress, Mode: "tcx", Severed: true, Problem: "nothing runs: the interface is gone",
		Interface: node.Interface{Name: "wg0", AttachedAs: "tun0", Index: 3, NetNS: node.NetNS{Path: "/run/netns/vpn", Cookie: 4026}},
		Members: []node.MemberStatus{{
			Program: "count_out", Priority: ptr(500), ProceedOn: []volume.Verdict{"ok", "pipe"},
			VolumeID: "pvc-0b5d", Pods: exampleShared,
			Image: "ghcr.io/acme/count:v1", Digest: digest.FromString("count"), ProgramID: 49,
		}},
	},
	{
		Point: "tracepoint syscalls/sys_enter_execve", Hook: "tracepoint",
		Members: []node.MemberStatus{{
			Program: "on_exec", VolumeID: "pvc-0b5d", Pods: exampleShared,
			Image: "ghcr.io/acme/count:v1", Digest: digest.FromString("count"), ProgramID: 50, LinkID: 11,
		}},
	},
	{
		Point: "cgroup kubepods.slice/pod1 skb/ingress", Hook: "cgroup",
		Members: []node.MemberStatus{{
			Program: "on_ingress", VolumeID: "pvc-0b5d", Pods: exampleShared,
			Image: "ghcr.io/acme/count:v1", Digest: digest.FromString("count"), ProgramID: 48, LinkID: 10, Gone: "the cgroup is gone",
		}},
	},
}

func ptr[T any](v T) *T { return &v }
