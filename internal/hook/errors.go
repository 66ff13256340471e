// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
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

// RefusedError says that the kernel does not let this process, though root, attach to a kind of hook. It wraps
// ebpf.ErrNotSupported, too: nothing that a volume could say differently would help.
type RefusedError struct {
	Kind volume.Kind
	Err  error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("this kernel does not let bpfvol attach programs to hook %s: %v; see bpfvol doctor", e.Kind, errnoOf(e.Err))
}

// Unwrap makes errors.Is find the kernel's answer.
func (e *RefusedError) Unwrap() []error { return []error{e.Err, ebpf.ErrNotSupported} }

// full says that a hook has as many programs as the kernel takes there. It wraps the kernel's own answer, E2BIG.
func full(where string, most int, fix string) error {
	return &worded{fmt.Sprintf("%s: %d programs run there, more than that the kernel does not take; %s", where, most, fix), []error{unix.E2BIG}}
}

// errnoOf is the kernel's answer without the words around it.
func errnoOf(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
