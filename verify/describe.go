// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Describe says step by step what a policy of a file means. A step that is not OK is why it can admit nothing, or no pod.
// who says in words who an authority is.
func Describe(p *Policy, who func(Authority) string) []Step {
	var steps []Step
	say := func(stage string, ok bool, format string, args ...any) {
		steps = append(steps, Step{Stage: stage, Policy: p.Name, OK: ok, Text: fmt.Sprintf(format, args...)})
	}
	globs := make([]string, len(p.Images))
	for i, g := range p.Images {
		globs[i] = g.String()
	}
	say("image", true, "covers %s", some(globs))
	for i, a := range p.Authorities {
		say("authority", true, "%s[%d]: %.300s", a.Name(), i, who(a))
		if reads, ok := a.(interface{ Err() error }); ok { // files, which can be wrong while the policy is right
			if err := reads.Err(); err != nil {
				say("authority", false, "%s[%d]: %.300s", a.Name(), i, err)
			}
		}
	}
	switch {
	case p.Unsigned:
		say("authority", true, "unsigned: true, so images need no signature")
	case len(p.Authorities) == 0:
		say("authority", false, "none, and no \"unsigned: true\", so no image satisfies it; add a key")
	}
	if len(p.Subjects) == 0 {
		say("subject", false, "none, so nobody may use it; add subjects such as \"namespace/serviceaccount\"")
	} else {
		say("subject", true, "for %s", some(p.Subjects))
	}
	if len(p.Allow.Hooks) == 0 {
		say("allow", false, "no hook, so nothing may attach; list some in allow.hooks")
	} else {
		say("allow", true, "%s", p.Allow.describe())
	}
	return steps
}

// describe is everything that a program may do, in one line.
func (a Allow) describe() string {
	parts := []string{
		"hooks " + list(a.Hooks),
		"interfaces " + some(a.Interfaces),
		fmt.Sprintf("priority %d to %d", a.MinPriority, a.MaxPriority),
		"writable maps " + some(a.WritableMaps),
	}
	if a.MaxMapBytes != nil {
		parts = append(parts, fmt.Sprintf("%d bytes of maps", *a.MaxMapBytes))
	}
	if a.MaxPrograms > 0 {
		parts = append(parts, fmt.Sprintf("%d programs", a.MaxPrograms))
	}
	if a.MaxInstructions > 0 {
		parts = append(parts, fmt.Sprintf("%d instructions in each", a.MaxInstructions))
	}
	if len(a.DenyHelpers) > 0 {
		parts = append(parts, "no helper "+some(a.DenyHelpers))
	}
	return strings.Join(parts, "; ")
}

// Names says whether the policy names s among its subjects.
func (p *Policy) Names(s Subject) bool { return matchSubject(p.Subjects, s) }

// HooksOf lists what the policies together let programs attach to, in the order of volume.Kinds.
func HooksOf(policies []*Policy) []volume.Kind {
	var out []volume.Kind
	for _, k := range volume.Kinds {
		if slices.ContainsFunc(policies, func(p *Policy) bool { return slices.Contains(p.Allow.Hooks, k) }) {
			out = append(out, k)
		}
	}
	return out
}
