// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/loader"
	"github.com/bpfvol/bpfvol/verify"
)

// publishOptions is what run and publish share: the whole engine, for one volume at a directory.
type publishOptions struct {
	stateOptions
	imageOptions
	policyOptions
	attributeOptions
	pointOptions
	group   int
	verbose bool
}

func (o *publishOptions) flags(cmd *cobra.Command) {
	o.attributeOptions.flags(cmd)
	o.policyOptions.flags(cmd)
	o.stateOptions.flags(cmd)
	o.imageOptions.flags(cmd)
	o.pointOptions.flags(cmd)
	cmd.Flags().IntVar(&o.group, "group", -1, "`GID` that alone may use the directory, to write maps that are rw, too; -1 is everyone")
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "print each stage, and the whole verifier log")
}

const publishLong = `
The image must be allowed by a policy: a file in --policy-dir with subject local/<user>, or one-off by
--key FILE (signed by this key) or --allow-unsigned.

With --member-stats, every program at the points where the image attaches is counted from then on, until bpfvol serve
starts without it.`

func newRun() *cobra.Command {
	var o publishOptions
	cmd := &cobra.Command{
		Use:     "run IMAGE DIR",
		GroupID: "node",
		Short:   "Run an image and show its maps at DIR until Ctrl-C",
		Long: strings.TrimSpace(`
Run does what a pod's volume does: it pulls, verifies, loads and attaches the image's programs and mounts
their maps at DIR. On Ctrl-C everything is taken away again.` + "\n" + publishLong),
		Example: `  bpfvol run ghcr.io/acme/count:v1 --key acme.pub --attach '{program: count, xdp: {interface: veth0}}' /run/count`,
		Args:    exactArgs("IMAGE", "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needRoot(cmd, "loads programs, attaches them and mounts DIR"); err != nil {
				return err
			}
			return o.run(cmd.Context(), args[0], args[1], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.flags(cmd)
	cmd.ValidArgsFunction = completeImageDir
	return cmd
}

func newPublish() *cobra.Command {
	var o publishOptions
	cmd := &cobra.Command{
		Use:     "publish IMAGE DIR",
		GroupID: "node",
		Short:   "Run an image and show its maps at DIR until `bpfvol unpublish DIR`",
		Long:    strings.TrimSpace("Publish is `bpfvol run` in two steps: the programs run on after it has returned.\n" + publishLong),
		Example: "  bpfvol publish ghcr.io/acme/count:v1 --key acme.pub --attach '{program: count, xdp: {interface: veth0}}' /run/count\n" +
			"  bpfvol unpublish /run/count",
		Args: exactArgs("IMAGE", "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needRoot(cmd, "loads programs, attaches them and mounts DIR"); err != nil {
				return err
			}
			return o.publish(cmd.Context(), args[0], args[1], cmd.ErrOrStderr(), func(engine *node.Engine, id string) error {
				return describe(cmd.OutOrStdout(), engine, id)
			})
		},
	}
	o.flags(cmd)
	cmd.ValidArgsFunction = completeImageDir
	return cmd
}

func newUnpublish() *cobra.Command {
	var o stateOptions
	cmd := &cobra.Command{
		Use:     "unpublish DIR",
		GroupID: "node",
		Short:   "Take away what was published at DIR",
		Long: strings.TrimSpace(`
Unpublish detaches the programs, unmounts DIR and removes it. A DIR where nothing is published is no error.

What was published by hand is DIR's alone, so nothing else needs to be named. A pod's volume goes with the pod, and a
PersistentVolume that pods share goes with the last of them: their directories are refused.`),
		Args: exactArgs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needRoot(cmd, "detaches programs and unmounts DIR"); err != nil {
				return err
			}
			return o.unpublish(cmd.Context(), args[0], cmd.ErrOrStderr())
		},
		ValidArgsFunction: o.completeLocal,
	}
	o.flags(cmd)
	return cmd
}

func (o *stateOptions) unpublish(ctx context.Context, dir string, stderr io.Writer) error {
	target, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if v, err := o.publishedAt(target); err == nil { // else there is something, and it is broken
		if v == nil {
			fmt.Fprintf(stderr, "nothing is published at %s\n", target)
			return nil
		}
		if v.VolumeID != localID(target) {
			pod := v.Target(target).Pod
			return fmt.Errorf("%s is the volume of pod %s/%s; delete the pod", target, pod.Namespace, pod.Name)
		}
	}
	engine, err := node.Open(o.options())
	if err != nil {
		return err
	}
	return engine.Unpublish(ctx, localID(target), target)
}

// publishedAt returns the volume at target, or nil.
func (o *stateOptions) publishedAt(target string) (*node.Volume, error) {
	volumes, err := o.look().List()
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		if v.Target(target) != nil {
			return &v, nil
		}
	}
	return nil, nil
}

// localID is the volume id of a directory: the directory is all a person has to remember.
func localID(target string) string { return "local:" + target }

// run publishes, waits for ctx to end, and unpublishes.
func (o *publishOptions) run(ctx context.Context, ref, dir string, stdout, stderr io.Writer) error {
	target, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	// Publishing again is no error, but then Ctrl-C would take away what somebody else made.
	if v, err := o.publishedAt(target); err != nil {
		return err
	} else if v != nil {
		return fmt.Errorf("%s: a volume is published there already; take it away with bpfvol unpublish %s", target, dir)
	}
	return o.publish(ctx, ref, dir, stderr, func(engine *node.Engine, id string) error {
		if err := describe(stdout, engine, id); err != nil {
			return err
		}
		fmt.Fprintln(stderr, "running; Ctrl-C takes everything away")
		<-ctx.Done()
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		return engine.Unpublish(undo, id, target)
	})
}

// publish publishes one volume and then calls then.
func (o *publishOptions) publish(ctx context.Context, ref, dir string, stderr io.Writer, then func(*node.Engine, string) error) error {
	if o.group < -1 {
		return &usageError{fmt.Errorf("--group %d: is no group id; -1 is everyone", o.group)}
	}
	target, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	attributes, err := o.attributes(ref)
	if err != nil {
		return err
	}
	policies, err := o.policyOptions.open()
	if err != nil {
		return err
	}
	images, err := o.imageOptions.open(ctx)
	if err != nil {
		return err
	}
	defer images.Close()
	if o.allowUnsigned {
		fmt.Fprintln(stderr, "warning: --allow-unsigned: the image runs in this machine's kernel, whoever made it")
	}
	pulled := announce(stderr, "pulling %s", ref)
	defer pulled()
	options := o.stateOptions.options()
	options.Images, options.Policies = images, policies
	options.MemberStats, options.LibXDP = o.memberStats, o.libxdp
	options.Reached = func(s node.Stage) {
		if s == node.StageOpened {
			pulled()
		}
		if o.verbose {
			fmt.Fprintf(stderr, "%s\n", s)
		}
	}
	engine, err := node.Open(options)
	if err != nil {
		return err
	}
	req := node.Request{VolumeID: localID(target), Target: target, Attributes: attributes, Subject: localSubject()}
	if o.group >= 0 {
		req.Group = &o.group
	}
	if err := engine.Publish(ctx, req); err != nil {
		var rejected *loader.VerifierError
		if o.verbose && errors.As(err, &rejected) {
			fmt.Fprintln(stderr, rejected.Log)
		}
		if errors.As(err, new(*verify.DeniedError)) {
			return hinted(err, "for this call alone, --key FILE admits what that key signed, --allow-unsigned anything")
		}
		if parsed, perr := image.ParseReference(ref); perr == nil {
			err = o.explainMissing(err, parsed)
		}
		return err
	}
	return then(engine, req.VolumeID)
}

// describe prints what runs now and where to read it.
func describe(w io.Writer, engine *node.Engine, id string) error {
	volumes, err := engine.List()
	if err != nil {
		return err
	}
	points, err := engine.Status()
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if v.VolumeID != id {
			continue
		}
		target := v.Targets[0] // one made by hand has no other
		fmt.Fprintf(w, "image   %s\nsigner  %s (policy %s%s)\n", byDigest(v.Image, v.Digest.String()), printable(target.Signer), target.Policy, comma(target.Authority))
		for _, p := range points {
			for _, m := range p.Members {
				if m.VolumeID == id {
					fmt.Fprintf(w, "runs    %s at %s%s\n", m.Program, p.Point, parenthesised(p.Mode))
				}
			}
		}
		shown, err := podfs.Read(target.Path)
		if err != nil {
			return err
		}
		for _, m := range shown.Maps {
			if m.JSON {
				fmt.Fprintf(w, "read    cat %s/json/%s\n", target.Path, m.Name)
			} else {
				fmt.Fprintf(w, "read    %s/maps/%s (%s: by BPF_OBJ_GET only)\n", target.Path, m.Name, m.Type)
			}
		}
	}
	return nil
}

// comma puts a word behind another, if there is one.
func comma(s string) string {
	if s == "" {
		return ""
	}
	return ", " + s
}

// parenthesised is what follows a name, if anything does.
func parenthesised(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}
