// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/doctor"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// policyFiles are the policies of --policy, which need not all be good.
type policyFiles struct {
	path     string
	policies verify.Static
	wrong    []error // what is wrong, a file or a policy each
	who      map[verify.Authority]string
}

// readPolicies reads a file, or a directory as the node plugin does.
func readPolicies(path string) (*policyFiles, error) {
	p := &policyFiles{path: path, who: map[verify.Authority]string{}}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("--policy: %w", err)
	}
	if info.IsDir() {
		dir, err := verify.OpenDir(path, p.compile)
		if err != nil {
			return nil, err
		}
		p.policies, p.wrong = dir.Policies(), parts(dir.Err())
		return p, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--policy: %w", err)
	}
	policies, err := verify.ParsePolicies(data, path, p.compile)
	p.policies, p.wrong = policies, parts(err)
	return p, nil
}

// parts takes apart what errors.Join made, also of what it made before.
func parts(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || !strings.Contains(err.Error(), "\n") {
		if err == nil {
			return nil
		}
		return []error{err}
	}
	var all []error
	for _, part := range joined.Unwrap() {
		all = append(all, parts(part)...)
	}
	return all
}

// compile is cosign.Compile that remembers in words who is meant.
func (p *policyFiles) compile(spec v1alpha1.Authority, dir string) (verify.Authority, error) {
	a, err := cosign.Compile(spec, dir)
	if err == nil {
		p.who[a] = authorityText(spec)
	}
	return a, err
}

func authorityText(spec v1alpha1.Authority) string {
	var words []string
	if spec.Key != nil {
		if fingerprint, err := cosign.Fingerprint([]byte(spec.Key.Data)); err == nil {
			words = append(words, fingerprint)
		}
	}
	if k := spec.Keyless; k != nil {
		for _, field := range []struct{ name, value string }{
			{"issuer", k.Issuer}, {"issuer like", k.IssuerRegexp}, {"subject", k.Subject}, {"subject like", k.SubjectRegexp},
		} {
			if field.value != "" {
				words = append(words, field.name+" "+field.value)
			}
		}
	}
	for _, a := range spec.Attestations {
		words = append(words, "with "+a.PredicateType)
		if a.BuilderID != "" {
			words = append(words, "by "+a.BuilderID)
		}
	}
	return strings.Join(words, ", ")
}

// steps says what is wrong with the files.
func (p *policyFiles) steps() []verify.Step {
	var steps []verify.Step
	for _, err := range p.wrong {
		steps = append(steps, verify.Step{Stage: "file", Text: err.Error()})
	}
	if len(p.policies) == 0 && len(p.wrong) == 0 {
		steps = append(steps, verify.Step{Stage: "file", Text: p.path + " has no policy"})
	}
	return steps
}

// describe says what the policies mean and whom they are for, and what this kernel lacks of their hooks.
func (p *policyFiles) describe(ctx context.Context, subject *verify.Subject) []verify.Step {
	steps := p.steps()
	for _, policy := range p.policies {
		steps = append(steps, verify.Describe(policy, func(a verify.Authority) string { return p.who[a] })...)
		if subject == nil {
			continue
		}
		s := verify.Step{Stage: "as", Policy: policy.Name, OK: policy.Names(*subject), Text: fmt.Sprintf("may be used by %q", subject)}
		if !s.OK {
			s.Text = fmt.Sprintf("may not be used by %q", subject)
		}
		steps = append(steps, s)
	}
	for _, c := range doctor.RunHooks(ctx, verify.HooksOf(p.policies)) {
		s := verify.Step{Stage: "hook", OK: c.OK, Text: c.Name + ": " + c.Detail}
		if !c.OK {
			s.Text = c.Name + ": not on this machine: " + c.Reason
		}
		steps = append(steps, s)
	}
	return steps
}

// broken says whether a step is a mistake in the policies: other steps are about who asks and on which machine.
func broken(s verify.Step) bool { return !s.OK && !slices.Contains([]string{"as", "hook"}, s.Stage) }

// parseSubject reads --as.
func parseSubject(text string) (verify.Subject, error) {
	ns, name, ok := strings.Cut(text, "/")
	if !ok || ns == "" || name == "" || strings.ContainsAny(text, "* \t\n") || strings.Contains(name, "/") {
		return verify.Subject{}, &usageError{fmt.Errorf("--as %q: write NAMESPACE/SERVICEACCOUNT, or local/USER for the command line", text)}
	}
	s := verify.Subject{Namespace: ns, ServiceAccount: name}
	if local := verify.LocalSubject(name); local.String() == text {
		s = local
	}
	return s, nil
}

// stepTable prints steps as they were told.
func stepTable(w io.Writer, steps []verify.Step) error {
	if err := row(w, "STAGE", "POLICY", "OK", "WHY"); err != nil {
		return err
	}
	for _, s := range steps {
		if err := row(w, s.Stage, s.Policy, yesNo(s.OK), s.Text); err != nil {
			return err
		}
	}
	return nil
}

func yesNo(ok bool) string {
	if ok {
		return "yes"
	}
	return "no"
}
