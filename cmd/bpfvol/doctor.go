// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/doctor"
	"github.com/bpfvol/bpfvol/internal/host"
	"github.com/bpfvol/bpfvol/verify"
)

func newDoctor() *cobra.Command {
	var o verifyOptions
	var out outputOption
	var node string
	cmd := &cobra.Command{
		Use:     "doctor [IMAGE --policy FILE]",
		GroupID: "look",
		Short:   "Say what this process can do with this kernel, by trying it, or what policies mean",
		Long: strings.TrimSpace(`
Doctor loads and attaches a tiny program at every kind of hook, in a network namespace of its own, and takes it
away again. What does not work is shown with the kernel's answer and what to do. It fails when something is missing
that bpfvol can't work without. It also says which capabilities are missing and, with the --host-process of bpfvol serve
in a container, whether the node can be reached; in the pod of the node plugin its environment has that:

  kubectl exec -n bpfvol-system ds/bpfvol -- /bpfvol doctor

With --policy it reads policy files instead and says what each means: which images it covers, whose signature counts
(keys by their fingerprint), whom it is for, what it allows, and which of its hooks this kernel has. It fails when a
file cannot be read, with the line, or a policy can never admit anything. --as says of each policy whether the service
account may use it; with an IMAGE, the steps of bpfvol verify IMAGE follow.`),
		Example: `  bpfvol doctor
  bpfvol doctor --policy /etc/bpfvol/policy.d
  bpfvol doctor --policy acme.yaml --as net/agent ghcr.io/acme/count:v1 --attach '{program: count, xdp: eth0}'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs("IMAGE")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.policy != "" {
				return o.examine(cmd, args, &out)
			}
			if len(args) > 0 || o.as != "" {
				return &usageError{fmt.Errorf("doctor: --policy FILE is missing; see %s --help", cmd.CommandPath())}
			}
			checks := doctor.Run(cmd.Context(), host.Process(node))
			if err := out.print(cmd.OutOrStdout(), checks, func(w io.Writer) error { return checkTable(w, checks) }); err != nil {
				return err
			}
			for _, c := range checks {
				if c.Needed && !c.OK {
					return errors.New("doctor: bpfvol can't work here; see the lines marked NO")
				}
			}
			return nil
		},
		ValidArgsFunction: completeImage,
	}
	out.flags(cmd)
	hostFlag(cmd, &node)
	o.whoFlags(cmd)
	o.layoutOptions.flags(cmd)
	o.attributeOptions.flags(cmd)
	return cmd
}

// examined is what doctor --policy found out.
type examined struct {
	Steps    []verify.Step `json:"steps"`
	Decision *explanation  `json:"decision,omitempty"` // with an IMAGE
}

// examine says what policy files mean, and with an image what they say to it.
func (o *verifyOptions) examine(cmd *cobra.Command, args []string, out *outputOption) error {
	files, err := readPolicies(o.policy)
	if err != nil {
		return err
	}
	var asked *verify.Subject
	if o.as != "" {
		s, err := o.subject()
		if err != nil {
			return err
		}
		asked = &s
	}
	found := examined{Steps: files.describe(cmd.Context(), asked)}
	var decided error
	if len(args) > 0 {
		if found.Decision, decided, err = o.decide(cmd.Context(), args[0], files.policies, cmd.ErrOrStderr()); err != nil {
			return err
		}
	}
	err = out.print(cmd.OutOrStdout(), found, func(w io.Writer) error {
		steps := found.Steps
		if x := found.Decision; x != nil {
			steps = append(append(steps, x.Steps...), x.last())
		}
		return stepTable(w, steps)
	})
	if err != nil {
		return err
	}
	if slices.ContainsFunc(found.Steps, broken) {
		return errors.Join(errors.New("doctor: the policies are not what they should be; see the lines marked no"), decided)
	}
	return decided
}

func checkTable(w io.Writer, checks []doctor.Check) error {
	for _, c := range checks {
		mark, text := "yes", c.Detail
		if !c.OK {
			mark, text = "no", c.Reason
			if c.Needed {
				mark = "NO"
			}
			if c.Fix != "" {
				text += "; " + c.Fix
			}
		}
		if err := row(w, mark, c.Name, c.What, text); err != nil {
			return err
		}
	}
	return nil
}
