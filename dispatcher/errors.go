// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

var (
	// ErrFull is what every *FullError is.
	ErrFull = errors.New("point has no room")
	// ErrForeign is what every *ForeignError is.
	ErrForeign = errors.New("foreign program at the point")
	// ErrMode is what every *ModeError is.
	ErrMode = errors.New("point runs in another mode")
	// ErrMissing is what every *InterfaceError is.
	ErrMissing = errors.New("interface does not exist")
)

// FullError says that a point has no place left for a member.
type FullError struct {
	Point  Point
	Member Member // who attaches; zero if a program that is there lost its place
	Why    string
}

func (e *FullError) Error() string {
	who := ""
	if e.Member.Program != "" {
		who = fmt.Sprintf(" for program %.64q", e.Member.Program)
	}
	return fmt.Sprintf("%s: no place%s: %s; use another interface, or remove a volume from this one", e.Point, who, e.Why)
}

// Is makes errors.Is(err, ErrFull) true.
func (e *FullError) Is(target error) bool { return target == ErrFull }

// ModeError says that a point runs in another XDP mode than a member asks for: all members of an interface share one.
type ModeError struct {
	Point      Point
	Has, Wants volume.XDPMode
	Holder     Member // one that is there
}

func (e *ModeError) Error() string {
	return fmt.Sprintf("%s: runs in %s mode for program %.64q and cannot run in %s mode, too; use mode auto, which takes what is there",
		e.Point, e.Has, e.Holder.Program, e.Wants)
}

// Is makes errors.Is(err, ErrMode) true.
func (e *ModeError) Is(target error) bool { return target == ErrMode }

// ForeignError says that a program runs at a point that bpfvol did not attach.
type ForeignError struct {
	Point Point
	ID    ebpf.ProgramID // 0 if the kernel does not say
	Name  string         // as loaded; may be empty
}

func (e *ForeignError) Error() string {
	fix := "detach it first: ip link set dev " + e.Point.Interface + " xdp off, or end what attached it"
	if e.Point.Kind == volume.KindTC {
		fix = "delete that filter first"
	}
	return fmt.Sprintf("%s: program %.32q (id %d) that is not bpfvol's runs there; %s", e.Point, e.Name, e.ID, fix)
}

// Is makes errors.Is(err, ErrForeign) true.
func (e *ForeignError) Is(target error) bool { return target == ErrForeign }

// InterfaceError says that an interface does not exist in the network namespace, and which do.
type InterfaceError struct {
	Name     string // as written, "@default-route" too
	Existing []string
}

// shownInterfaces is how many interfaces a message lists: a node has one per pod.
const shownInterfaces = 16

func (e *InterfaceError) Error() string {
	var b strings.Builder
	if e.Name == DefaultRoute {
		b.WriteString("interface " + DefaultRoute + ": there is no default route, neither IPv4 nor IPv6; name the interface")
	} else {
		fmt.Fprintf(&b, "interface %.64q does not exist", e.Name)
		if near := volume.Suggest(e.Name, e.Existing); near != "" {
			fmt.Fprintf(&b, "; did you mean %q?", near)
		}
	}
	if len(e.Existing) > 0 {
		shown := e.Existing[:min(len(e.Existing), shownInterfaces)]
		b.WriteString("; there are: " + strings.Join(shown, ", "))
		if n := len(e.Existing) - len(shown); n > 0 {
			fmt.Fprintf(&b, " and %d more", n)
		}
	}
	return b.String()
}

// Is makes errors.Is(err, ErrMissing) true.
func (e *InterfaceError) Is(target error) bool { return target == ErrMissing }
