// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bufio"
	"iter"
	"os"
	"strconv"
	"strings"
)

// ksym is a symbol of the kernel or of one of its modules.
type ksym struct {
	address uint64 // 0 for all where the kernel hides them (sysctl kernel.kptr_restrict)
	kind    string // as nm(1) has it
	name    string
}

// ksyms reads the kernel's symbols; none if they cannot be read.
func ksyms() iter.Seq[ksym] {
	return func(yield func(ksym) bool) {
		f, err := os.Open("/proc/kallsyms")
		if err != nil {
			return
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text()) // address, kind, name, and perhaps [module]
			if len(fields) < 3 {
				continue
			}
			address, err := strconv.ParseUint(fields[0], 16, 64)
			if err == nil && !yield(ksym{address, fields[1], fields[2]}) {
				return
			}
		}
	}
}

// missingFunction says that the kernel has no function of this name, and which the writer may have meant. Not among them
// are the compiler's own, which nobody means: padding, and the rarely used part of a function.
func missingFunction(name string) error {
	var names []string
	for s := range ksyms() {
		if strings.Contains("tTwW", s.kind) && !strings.HasPrefix(s.name, "__pfx_") && !strings.HasPrefix(s.name, "__cfi_") &&
			!strings.HasSuffix(s.name, ".cold") {
			names = append(names, s.name)
		}
	}
	return &MissingError{What: "kernel function", Name: name, Where: "there are", Known: names}
}

// functionSize returns how many bytes there are up to the next symbol, or 0 where that cannot be known. The kernel itself
// does not mind an offset that leads into another function.
func functionSize(name string) uint64 {
	var start uint64
	var all []uint64
	for s := range ksyms() {
		if s.name == name {
			start = s.address
		}
		all = append(all, s.address)
	}
	size := uint64(0)
	for _, address := range all {
		if behind := address - start; start != 0 && address > start && (size == 0 || behind < size) {
			size = behind
		}
	}
	return size
}
