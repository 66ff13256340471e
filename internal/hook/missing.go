// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// ErrMissing is what every *MissingError is.
var ErrMissing = errors.New("does not exist")

// MissingError says that something a hook names does not exist on this node.
type MissingError struct {
	What  string   // "tracepoint", "symbol", "binary", "cgroup", "event", ...
	Name  string   // as written
	Where string   // what was searched, in words: "the group has"
	Known []string // what exists there, in any order
}

// shownNames is how many of the existing names a message lists.
const shownNames = 8

func (e *MissingError) Error() string {
	msg := fmt.Sprintf("%s %s does not exist", e.What, quote(e.Name))
	if near := volume.Suggest(e.Name, e.Known); near != "" {
		return msg + "; did you mean " + quote(near) + "?"
	}
	if len(e.Known) == 0 {
		return msg + " on this node"
	}
	names := slices.Sorted(slices.Values(e.Known))
	rest := ""
	if n := len(names) - shownNames; n > 0 {
		names, rest = names[:shownNames], fmt.Sprintf(" and %d more", n)
	}
	for i, name := range names {
		names[i] = strings.Trim(quote(name), `"`)
	}
	return msg + "; " + e.Where + ": " + strings.Join(names, ", ") + rest
}

// Is makes errors.Is(err, ErrMissing) true.
func (e *MissingError) Is(target error) bool { return target == ErrMissing }

// quote makes a name from outside safe to print: quoted, and at most 128 bytes of it.
func quote(name string) string {
	if len(name) > 128 {
		name = name[:128]
	}
	return fmt.Sprintf("%q", name)
}
