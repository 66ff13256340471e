// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/doctor"
)

func newDoctor() *cobra.Command {
	var out outputOption
	cmd := &cobra.Command{
		Use:     "doctor",
		GroupID: "look",
		Short:   "Say what this process can do with this kernel, by trying it",
		Long: strings.TrimSpace(`
Doctor loads and attaches a tiny program at every kind of hook, in a network namespace of its own, and takes it
away again. What does not work is shown with the kernel's answer and what to do. It fails when something is missing
that bpfvol can't work without.`),
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks := doctor.Run(cmd.Context())
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
	}
	out.flags(cmd)
	return cmd
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
