// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/cilium/ebpf/asm"

	"github.com/bpfvol/bpfvol/internal/volume"
)

const (
	// kfuncPrefix marks a kernel function that is no helper. The kernel's own list changes with version, configuration and
	// modules, so nobody can tell a mistyped helper from a kfunc unless the policy says which is meant.
	kfuncPrefix = "kfunc:"
	// byNumberPrefix is how a helper is called that this build has no name for.
	byNumberPrefix = "helper#"
)

// HelperName is a helper's name in the kernel's headers: FnMapLookupElem is bpf_map_lookup_elem. One that is newer than
// this build is helper#<number>.
func HelperName(fn asm.BuiltinFunc) string {
	words, ok := strings.CutPrefix(fn.String(), "Fn")
	if !ok {
		return byNumberPrefix + strconv.FormatUint(uint64(uint32(fn)), 10)
	}
	var b strings.Builder
	b.WriteString("bpf")
	for _, r := range words {
		if unicode.IsUpper(r) {
			b.WriteByte('_')
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

// knownHelpers are the names of every helper that this build knows, in the order of their numbers.
var knownHelpers = sync.OnceValue(func() []string {
	var names []string
	for fn := asm.BuiltinFunc(1); ; fn++ {
		name := HelperName(fn)
		if strings.HasPrefix(name, byNumberPrefix) {
			return names
		}
		names = append(names, name)
	}
})

// functionName fits helpers and kfuncs.
var functionName = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)

const maxFunctionName = 128 // KSYM_NAME_LEN until Linux 6.1

func isFunctionName(s string) bool { return len(s) <= maxFunctionName && functionName.MatchString(s) }

// deniedFunction returns the name, as in ProgramFacts.Helpers, of what a policy denies. A name that denies nothing would
// be a hole that looks like a wall, so what cannot be right is refused.
func deniedFunction(s string) (string, error) {
	if kfunc, ok := strings.CutPrefix(s, kfuncPrefix); ok {
		if !isFunctionName(kfunc) {
			return "", fmt.Errorf("%.64q is no kernel function's name; write it as in the kernel's BTF: %q", s, kfuncPrefix+"bpf_task_acquire")
		}
		return kfunc, nil
	}
	if number, ok := strings.CutPrefix(s, byNumberPrefix); ok {
		n, err := strconv.ParseUint(number, 10, 31)
		if err != nil || n == 0 || number != strconv.FormatUint(n, 10) {
			return "", fmt.Errorf("%.64q is no helper's number; write %q", s, byNumberPrefix+"250")
		}
		if name := HelperName(asm.BuiltinFunc(n)); name != s {
			return "", fmt.Errorf("%q has a name; write %q", s, name)
		}
		return s, nil
	}
	if !isFunctionName(s) {
		return "", fmt.Errorf("%.64q is no helper's name; write it as in bpf-helpers(7): bpf_probe_write_user", s)
	}
	name := "bpf_" + strings.TrimPrefix(s, "bpf_")
	if slices.Contains(knownHelpers(), name) {
		return name, nil
	}
	near := ""
	if meant := volume.Suggest(name, knownHelpers()); meant != "" {
		near = fmt.Sprintf("did you mean %q? ", meant)
	}
	return "", fmt.Errorf("unknown helper %.64q; %sa kernel function that is no helper is written %.80q", s, near, kfuncPrefix+s)
}

// sameFunction compares with and without "bpf_", so that a policy that leaves it out denies nonetheless.
func sameFunction(a, b string) bool {
	return strings.TrimPrefix(a, "bpf_") == strings.TrimPrefix(b, "bpf_")
}
