// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
)

// ErrUnfit means that something a hook names exists on this node, but is not what the hook needs.
var ErrUnfit = errors.New("cannot be attached to")

// worded is an error whose text says all there is to read, and whose kinds are for errors.Is.
type worded struct {
	text  string
	kinds []error
}

func (e *worded) Error() string   { return e.text }
func (e *worded) Unwrap() []error { return e.kinds }

func unfit(format string, args ...any) error {
	return &worded{fmt.Sprintf(format, args...), []error{ErrUnfit}}
}
