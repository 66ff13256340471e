// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/verify"
)

// verifyOptions is a volume that is not published: who asks for what, and the policies that are asked.
type verifyOptions struct {
	layoutOptions
	attributeOptions
	keys       []string
	policy, as string
	kubeconfig string
}

func newVerify() *cobra.Command {
	var o verifyOptions
	var out outputOption
	cmd := &cobra.Command{
		Use:     "verify IMAGE",
		GroupID: "image",
		Short:   "Check an image's signature, or what a policy says to a volume of it",
		Long: strings.TrimSpace(`
With --key, verify prints who signed an image, and ends with status 1 if none of the keys did.

With --policy it decides as the node plugin would, by the same code, whether a pod of the service account --as may run
the image with these attachments and maps, and prints each step with its reason: which policies cover the image and name
the account, who signed it, what its programs would do, and what the policy allows of that. Status 0 means admitted, 1
that it would be refused. Nothing is loaded, and neither root nor a node is needed: an interface that is not on this
machine is judged by its name. Without --as, it is the user of the command line who asks, as in bpfvol run.

With --kubeconfig it is the same with the BytecodePolicy objects of a cluster, where RBAC says whether the account may
use them. Whose kubeconfig it is needs the rights of deploy/rbac.yaml, events apart.

It asks the registry for signatures when the cache has none that fits.`),
		Example: `  bpfvol verify ghcr.io/acme/count:v1 --key bpfvol.pub
  bpfvol verify ghcr.io/acme/count:v1 --policy acme.yaml --as net/agent --attach '{program: count, xdp: eth0}'
  bpfvol verify ghcr.io/acme/count:v1 --policy /etc/bpfvol/policy.d --as net/agent --maps flows:rw -o json
  bpfvol verify ghcr.io/acme/count:v1 --kubeconfig ~/.kube/config --as net/agent --attach '{program: count, xdp: eth0}'`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.policy != "" && o.kubeconfig != "":
				return &usageError{errors.New("verify: policies come from --policy or from the cluster of --kubeconfig; leave one out")}
			case o.kubeconfig != "" && o.as == "":
				return &usageError{errors.New("verify: --as NAMESPACE/SERVICEACCOUNT is missing; RBAC is asked about the account of a pod")}
			case o.policy != "" || o.kubeconfig != "":
				return o.explain(cmd.Context(), args[0], &out, cmd.OutOrStdout(), cmd.ErrOrStderr())
			case len(o.keys) == 0:
				return &usageError{errors.New("verify: --key FILE or --policy FILE is missing; a key names who must have signed, a policy what may run")}
			}
			for _, flag := range []string{"as", "attach", "maps", "variables", "map-entries"} {
				if cmd.Flags().Changed(flag) {
					return &usageError{fmt.Errorf("verify: --%s says nothing without --policy FILE", flag)}
				}
			}
			return o.signatures(cmd.Context(), args[0], &out, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.layoutOptions.flags(cmd)
	o.attributeOptions.flags(cmd)
	out.flags(cmd)
	cmd.Flags().StringArrayVar(&o.keys, "key", nil, "public key `FILE` (PEM); repeatable, any one suffices; with --policy also what this key signed is allowed, as in bpfvol run")
	o.whoFlags(cmd)
	cmd.Flags().StringVar(&o.kubeconfig, "kubeconfig", "", "`FILE` that leads to a cluster, whose policies are asked instead of --policy")
	cmd.ValidArgsFunction = completeImage
	return cmd
}

// whoFlags are the flags that verify and doctor share.
func (o *verifyOptions) whoFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.policy, "policy", "", "BytecodePolicy `FILE`, or directory of them as of bpfvol serve --policy-dir")
	cmd.Flags().StringVar(&o.as, "as", "", "`NAMESPACE/SERVICEACCOUNT` of the pod that asks, or local/USER for the command line")
	fixed(cmd, "as")
}

// subject is who asks.
func (o *verifyOptions) subject() (verify.Subject, error) {
	if o.as == "" {
		return localSubject(), nil
	}
	return parseSubject(o.as)
}

// signature is one that counts.
type signature struct {
	Image  string       `json:"image"`
	Digest string       `json:"digest"`
	Signer string       `json:"signer"`
	Format image.Format `json:"format"`
}

// signatures prints who signed.
func (o *verifyOptions) signatures(ctx context.Context, arg string, out *outputOption, stdout, stderr io.Writer) error {
	ref, err := image.ParseReference(arg)
	if err != nil {
		return err
	}
	store, root, err := o.resolve(ctx, ref, stderr)
	if err != nil {
		return err
	}
	defer store.Close()
	policies, err := keyPolicies(o.keys)
	if err != nil {
		return err
	}
	signed, err := verify.Check(ctx, root, policies)
	if err != nil {
		return err
	}
	var all []signature
	for _, g := range signed.Grants() {
		all = append(all, signature{ref.Name(), signed.Digest().String(), g.Signer.String(), g.Signer.Format})
	}
	return out.print(stdout, all, func(w io.Writer) error {
		for _, s := range all {
			if _, err := fmt.Fprintf(w, "%s@%s: signed by %s\n", s.Image, s.Digest, printable(s.Signer)); err != nil {
				return err
			}
		}
		return nil
	})
}

// explanation is a decision with the steps that led to it.
type explanation struct {
	Image     string        `json:"image"`
	Digest    string        `json:"digest,omitempty"`
	Subject   string        `json:"subject"`
	Result    node.Result   `json:"result"`
	Policy    string        `json:"policy,omitempty"`
	Authority string        `json:"authority,omitempty"`
	Signer    string        `json:"signer,omitempty"`
	Reason    string        `json:"reason,omitempty"`
	Steps     []verify.Step `json:"steps"`
}

// explain decides and prints how. The error is the decision's.
func (o *verifyOptions) explain(ctx context.Context, arg string, out *outputOption, stdout, stderr io.Writer) error {
	var policies verify.Policies
	var mistakes func() []verify.Step
	if o.kubeconfig != "" {
		objects, err := followCluster(ctx, o.kubeconfig)
		if err != nil {
			return err
		}
		defer objects.stop()
		policies, mistakes = objects, objects.steps
	} else {
		files, err := readPolicies(o.policy)
		if err != nil {
			return err
		}
		policies, mistakes = files.policies, files.steps
	}
	x, decided, err := o.decide(ctx, arg, policies, stderr)
	if err != nil {
		return err
	}
	x.Steps = append(mistakes(), x.Steps...)
	if err := out.print(stdout, x, func(w io.Writer) error { return stepTable(w, append(x.Steps, x.last())) }); err != nil {
		return err
	}
	return decided
}

// decide makes the decision and what is to be shown of it. The second error is that of a call that could not be made.
func (o *verifyOptions) decide(ctx context.Context, arg string, policies verify.Policies, stderr io.Writer) (x *explanation, decided, err error) {
	subject, err := o.subject()
	if err != nil {
		return nil, nil, err
	}
	attributes, err := o.attributes(arg)
	if err != nil {
		return nil, nil, err
	}
	ref, err := image.ParseReference(arg)
	if err != nil {
		return nil, nil, err
	}
	oneOff, err := keyPolicies(o.keys)
	if err != nil {
		return nil, nil, err
	}
	if len(oneOff) > 0 {
		policies = verify.Union{policies, verify.Static(oneOff)}
	}
	store, err := o.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer store.Close()
	x = &explanation{Subject: subject.String()}
	ctx = verify.WithTrace(ctx, func(s verify.Step) { x.Steps = append(x.Steps, s) })
	done := announce(stderr, "asking %s for %s", ref.Registry, ref)
	d := node.Look(node.Options{Images: store, Policies: policies}).
		DryRun(ctx, node.Request{Attributes: attributes, Subject: subject})
	done()
	x.Image, x.Digest, x.Result, x.Policy, x.Authority, x.Signer = d.Image, d.Digest.String(), d.Result(), d.Policy, d.Authority, d.Signer
	if d.Err != nil {
		x.Reason = d.Err.Error()
	}
	return x, o.explainMissing(d.Err, ref), nil
}

// last is the decision as the last step. Of a refusal, the error that follows has the reason.
func (x *explanation) last() verify.Step {
	s := verify.Step{Stage: "decision", Policy: x.Policy, OK: x.Result == node.Admitted, Text: string(x.Result)}
	if s.OK {
		s.Text += ", " + x.signed()
	}
	return s
}

func (x *explanation) signed() string {
	if x.Authority == "" {
		return x.Signer // "unsigned"
	}
	return "signed by " + x.Signer + " (" + x.Authority + ")"
}
