// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/pin"
)

// carrier is how the kernel holds a program at a point. Starting differs so much that it is no part of it: see startXDP,
// startTCX and startClsact.
type carrier interface {
	// running returns the program that packets meet; ok is false if it is not ours, or the interface is gone.
	running(s *site) (id ebpf.ProgramID, ok bool, err error)
	// detach ends it, and waits until no packet meets it. Nothing running is success.
	detach(s *site) error
}

// swapper is a carrier that holds one program.
type swapper interface {
	// swap replaces the program that has an id. Every packet meets one of the two. errRaced if another runs.
	swap(s *site, prog *ebpf.Program, old ebpf.ProgramID) error
}

const (
	carrierXDP    = "xdp"
	carrierTCX    = "tcx"
	carrierClsact = "clsact"
	carrierLibxdp = "libxdp"
)

func (s *site) carrier() carrier {
	switch s.record.Carrier {
	case carrierClsact:
		return clsact{}
	case carrierLibxdp:
		return libxdpDispatcher{}
	}
	return bpfLink{}
}

// running returns what packets meet at the point, if it is ours.
func (s *site) running() (ebpf.ProgramID, bool, error) {
	if s.record == (pointRecord{}) {
		return 0, false, nil
	}
	return s.carrier().running(s)
}

// bpfLink carries a program by the pinned link of the point, for XDP and TCX.
type bpfLink struct{}

func (bpfLink) open(s *site) (*linkState, error) {
	l, err := link.LoadPinnedLink(s.pin(linkPin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	st := &linkState{Link: l, id: info.ID, program: info.Program}
	// The kernel clears the index when the interface goes away: the link is severed.
	if x := info.XDP(); x != nil {
		st.ifindex = x.Ifindex
	} else if x := info.TCX(); x != nil {
		st.ifindex = x.Ifindex
	}
	return st, nil
}

type linkState struct {
	link.Link
	id      link.ID
	program ebpf.ProgramID
	ifindex uint32 // 0: severed
}

func (c bpfLink) running(s *site) (ebpf.ProgramID, bool, error) {
	l, err := c.open(s)
	if l == nil || err != nil {
		return 0, false, err
	}
	return l.program, l.ifindex != 0, l.Close()
}

// swap is a compare-and-swap by the kernel: it says EPERM where another program than the old one runs, ENOLINK where none
// does any more.
func (c bpfLink) swap(s *site, prog *ebpf.Program, old ebpf.ProgramID) error {
	l, err := c.open(s)
	if err != nil {
		return err
	}
	if l == nil {
		return errRaced
	}
	defer l.Close()
	was, err := ebpf.NewProgramFromID(old)
	if errors.Is(err, os.ErrNotExist) {
		return errRaced
	} else if err != nil {
		return err
	}
	defer was.Close()
	updater, ok := l.Link.(interface {
		UpdateArgs(link.RawLinkUpdateOptions) error
	})
	if !ok {
		return fmt.Errorf("%s: link %T cannot be updated", s.Point, l.Link)
	}
	err = updater.UpdateArgs(link.RawLinkUpdateOptions{New: prog, Old: was, Flags: unix.BPF_F_REPLACE})
	if err != nil {
		if now, alive, lookErr := c.running(s); lookErr == nil && (now != old || !alive) {
			return errRaced
		}
	}
	switch {
	case errors.Is(err, unix.ERANGE):
		return fmt.Errorf("%s: %w by the interface's driver: with its MTU, every program must take packets in fragments, and one does not; "+
			"compile it with SEC(\"xdp.frags\") or lower the MTU", s.Point, ebpf.ErrNotSupported)
	case err != nil:
		return fmt.Errorf("%s: replace the program: %w", s.Point, err)
	}
	s.reached("link updated")
	return nil
}

func (c bpfLink) detach(s *site) error {
	l, err := c.open(s)
	if l == nil || err != nil {
		return err
	}
	defer l.Close()
	if l.ifindex != 0 {
		// Removing the pin would do, some time after: the kernel ends a link that nobody holds on a thread of its own.
		if err := l.Detach(); err != nil {
			return err
		}
		s.reached("link detached")
	}
	if err := pin.Remove(s.pin(linkPin)); err != nil {
		return err
	}
	s.reached("link unpinned")
	return nil
}

// keep makes a link that was just made outlive this process. The point record comes before the link's pin: a pinned link
// without record would have nobody who ends it.
func (s *site) keep(l link.Link, r pointRecord) error {
	defer l.Close()
	s.reached("link made")
	if err := s.pinPoint(r); err != nil {
		return err
	}
	if err := pin.Remove(s.pin(linkPin)); err != nil { // of one that somebody ended
		return err
	}
	if err := l.Pin(s.pin(linkPin)); err != nil {
		return err
	}
	s.reached("link pinned")
	return nil
}
