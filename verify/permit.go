// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Facts are what an object would really do, read from its ELF, for a policy's allow rules.
type Facts struct {
	Attach   []volume.Attach // after defaults; interfaces resolved
	Programs []ProgramFacts
	Maps     []MapFacts
}

// ProgramFacts describes one program that would be loaded.
type ProgramFacts struct {
	Name         string
	Instructions int
	Helpers      []string // helpers and kfuncs by their names in the kernel: "bpf_probe_write_user"
}

// MapFacts describes one map that would be created.
type MapFacts struct {
	Name   string
	Bytes  uint64 // estimate of the kernel memory: keys and values over all entries and CPUs
	Access volume.Access
	// PinByName says that the object asks for one map for the whole machine (LIBBPF_PIN_BY_NAME). No volume gets that.
	PinByName bool
}

// Permit returns the first grant whose policy allows everything in f. One policy must allow all of it: parts of two
// do not add up. A refusal is that of the policy with the fewest objections.
func (s Signed) Permit(ctx context.Context, f Facts) (Grant, error) {
	f.trace(ctx)
	denied := &DeniedError{Image: display(s.ref, s.digest), Cause: "it was not checked against a policy"}
	fewest := 0
	for _, g := range s.grants {
		objections := g.Policy.Allow.objections(f)
		if len(objections) == 0 {
			Trace(ctx, Step{Stage: "allow", Policy: g.Policy.Name, OK: true, Text: "allows everything that the programs would do"})
			return g, nil
		}
		for _, o := range objections {
			Trace(ctx, Step{Stage: "allow", Policy: g.Policy.Name, Text: "does not allow " + o})
		}
		if denied.Policy == "" || len(objections) < fewest {
			fewest = len(objections)
			denied.Policy = g.Policy.Name
			denied.Cause = fmt.Sprintf("policy %q does not allow %s", g.Policy.Name, objections[0])
			if more := fewest - 1; more > 0 {
				denied.Cause += fmt.Sprintf(" (and %d more)", more)
			}
			denied.Fix = "change the volume's attributes or ask an admin to widen the policy"
		}
	}
	return Grant{}, denied
}

// objections lists what f asks for beyond a.
func (a Allow) objections(f Facts) []string {
	var out []string
	object := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, at := range f.Attach {
		if k := at.Hook.Kind(); !slices.Contains(a.Hooks, k) {
			object("hook %q for program %.64q (it allows %s)", k, at.Program, list(a.Hooks))
		}
		for _, name := range volume.Interfaces(at.Hook) {
			if !matchAny(a.Interfaces, name) {
				object("interface %.64q for program %.64q (it allows %s)", name, at.Program, some(a.Interfaces))
			}
		}
		if p, ok := priority(at.Hook); ok && (p < a.MinPriority || p > a.MaxPriority) {
			object("priority %d for program %.64q (it allows %d to %d)", p, at.Program, a.MinPriority, a.MaxPriority)
		}
	}
	if n := len(f.Programs); a.MaxPrograms > 0 && n > a.MaxPrograms {
		object("%d programs (it allows %d)", n, a.MaxPrograms)
	}
	for _, p := range f.Programs {
		if a.MaxInstructions > 0 && p.Instructions > a.MaxInstructions {
			object("%d instructions in program %.64q (it allows %d)", p.Instructions, p.Name, a.MaxInstructions)
		}
		for _, h := range p.Helpers {
			if slices.ContainsFunc(a.DenyHelpers, func(denied string) bool { return sameFunction(denied, h) }) {
				object("helper %.64q, which program %.64q calls", h, p.Name)
			}
		}
	}
	for _, m := range f.Maps {
		if m.Access == volume.ReadWrite && !matchAny(a.WritableMaps, m.Name) {
			object("map %.64q as rw (it allows %s)", m.Name, some(a.WritableMaps))
		}
	}
	if total := f.mapBytes(); a.MaxMapBytes != nil && total > *a.MaxMapBytes {
		object("%d bytes of maps (it allows %d)", total, *a.MaxMapBytes)
	}
	return out
}

// mapBytes is what all maps take together. It saturates rather than overflows.
func (f Facts) mapBytes() uint64 {
	var total uint64
	for _, m := range f.Maps {
		if total += m.Bytes; total < m.Bytes {
			return math.MaxUint64
		}
	}
	return total
}

// trace tells what is judged.
func (f Facts) trace(ctx context.Context) {
	if !tracing(ctx) {
		return
	}
	tell := func(format string, args ...any) {
		Trace(ctx, Step{Stage: "object", OK: true, Text: fmt.Sprintf(format, args...)})
	}
	for _, p := range f.Programs {
		calls := "no helper"
		if len(p.Helpers) > 0 {
			calls = list(p.Helpers)
		}
		tell("program %.64q: %d instructions, calls %.300s", p.Name, p.Instructions, calls)
	}
	for _, at := range f.Attach {
		tell("program %.64q attaches to %.200s", at.Program, at.Hook)
	}
	tell("%d maps of together %d bytes at most", len(f.Maps), f.mapBytes())
	for _, m := range f.Maps {
		if m.Access == volume.ReadWrite {
			tell("map %.64q is writable for the pod", m.Name)
		}
		if m.PinByName {
			tell("map %.64q asks to be pinned by name for the whole machine; it stays in its volume", m.Name)
		}
	}
}

// priority is the place among the members of a point, for hooks where bpfvol orders them. Netfilter's priority is
// the kernel's and no band of ours.
func priority(h volume.Hook) (int, bool) {
	switch h := h.(type) {
	case *volume.XDP:
		return h.Priority, true
	case *volume.TC:
		return h.Priority, true
	}
	return 0, false
}

func matchAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matchElement(p, s) })
}

// some lists a policy's patterns for a message, few of them and not much of each.
func some(patterns []string) string {
	const few = 5
	if len(patterns) > few {
		return fmt.Sprintf("%.100s and %d more", list(patterns[:few]), len(patterns)-few)
	}
	return fmt.Sprintf("%.100s", list(patterns))
}
