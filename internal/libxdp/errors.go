// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

var (
	// ErrForeign is what every *ForeignError is.
	ErrForeign = errors.New("foreign program on the interface")
	// ErrFull means that a dispatcher has ten components.
	ErrFull = errors.New("libxdp's dispatcher has no free slot")
	// ErrMode means that a dispatcher runs in another mode than the one asked for.
	ErrMode = errors.New("libxdp's dispatcher runs in another mode")
	// ErrNoInterface means that the current network namespace has no such interface.
	ErrNoInterface = errors.New("interface does not exist")
)

// ForeignError says that the program on an interface is not a dispatcher that components can be added to.
type ForeignError struct {
	ID   ebpf.ProgramID // 0 if the kernel does not say
	Name string         // as loaded; may be empty
	Why  string         // in words; what others wrote is quoted
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("program %.32q (id %d) runs there, and no program can join it: %s; end what attached it", e.Name, e.ID, e.Why)
}

// Is makes errors.Is(err, ErrForeign) true.
func (e *ForeignError) Is(target error) bool { return target == ErrForeign }

// LoadError says why the kernel refuses a program as a component.
type LoadError struct {
	Program string
	Line    string // the verifier's last; from others, and of any length

	cause error
}

// maxLine bounds the verifier's words in a message.
const maxLine = 200

func (e *LoadError) Error() string {
	return fmt.Sprintf("program %.64q: the kernel refuses it as a component of libxdp's dispatcher: %.*q", e.Program, maxLine, e.Line)
}

func (e *LoadError) Unwrap() error { return e.cause }
