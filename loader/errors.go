// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Errors that callers tell apart.
var (
	// ErrInvalid means that the object cannot be used as asked: not BPF, wrong byte order, over a limit, a variable
	// that does not fit, a program that the hook does not take.
	ErrInvalid = errors.New("invalid object")
	// ErrNotFound means that the object has no such program or map.
	ErrNotFound = errors.New("not in image")
	// ErrUnsupported means that this kernel does not do what the object needs.
	ErrUnsupported = errors.New("not supported by this kernel")
)

// problem is an error whose text is written for the user and whose kind and cause are for errors.Is.
type problem struct {
	text  string
	kind  error
	cause error // may be nil
}

func (p *problem) Error() string { return p.text }

func (p *problem) Unwrap() []error {
	if p.cause == nil {
		return []error{p.kind}
	}
	return []error{p.kind, p.cause}
}

func invalid(format string, args ...any) error {
	return &problem{text: fmt.Sprintf(format, args...), kind: ErrInvalid}
}

// missing says that the object has no program or map of that name, and which it has.
func missing(what, name string, have []string) error {
	text := fmt.Sprintf("%s %s not in image; ", what, quote(name))
	if len(have) == 0 {
		return &problem{text: text + "it has none", kind: ErrNotFound}
	}
	text += "it has: " + list(have)
	if near := volume.Suggest(name, have); near != "" {
		text += "; did you mean " + quote(near) + "?"
	}
	return &problem{text: text, kind: ErrNotFound}
}

// maxName bounds how much of a name from an object goes into a message, maxText how much of any other text.
const (
	maxName   = 64
	maxListed = 10
	maxText   = 200
)

// quote makes a name from an object safe to print.
func quote(name string) string { return fmt.Sprintf("%q", truncate(name, maxName)) }

// list names what exists. Names are bare where that is unambiguous, and cut short where there are many.
func list(names []string) string {
	var b strings.Builder
	for i, name := range names {
		if i == maxListed {
			fmt.Fprintf(&b, " and %d more", len(names)-maxListed)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		if isName(name) {
			b.WriteString(name)
		} else {
			b.WriteString(quote(name))
		}
	}
	return b.String()
}

// truncate cuts s to at most n bytes and says so.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// printable makes text that an object or the kernel had a part in fit for one line of a message.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, s)
	return truncate(s, maxText)
}

// maxPinned is the longest name that is taken for a program or map; bpffs would take 255.
const maxPinned = 128

// isName says whether a name can be a file of a bpffs, which refuses dots, and is an identifier in C.
func isName(s string) bool {
	if s == "" || len(s) > maxPinned {
		return false
	}
	for i, c := range []byte(s) {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}
