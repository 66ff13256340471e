// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/internal/pin"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Repair makes a point run again what its members say, where somebody else ended or changed it: a link that was detached
// or had its program replaced, a filter that was deleted, a pin that was removed. It says in words what it did, nothing if
// all is well or nothing can be done: Status has what is wrong.
//
// It starts nothing where the interface is not the one of the point, by index and by name: that may be another one. A
// program that took the place stays: *ForeignError.
func (d *Dispatcher) Repair(ctx context.Context, p Point) (did []string, err error) {
	s, err := d.open(ctx, p, false)
	if s == nil || err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if len(s.members) == 0 {
		return nil, nil // somebody is about to come, or Recover clears it
	}
	defer func() {
		for i := range did {
			did[i] = s.Point.String() + ": " + did[i]
		}
	}()
	if did, err = s.repin(); err != nil {
		return did, err
	}
	_, alive, err := s.running()
	if err != nil {
		return did, err
	}
	restart := s.startAgain
	if alive {
		restart = s.makeRight
	}
	done, err := restart(ctx)
	if done != "" && err == nil {
		did = append(did, done)
	}
	return did, err
}

// makeRight is for a point at which something of ours runs.
func (s *site) makeRight(ctx context.Context) (did string, err error) {
	if moved, err := s.hasMoved(); moved || err != nil {
		return "", err
	}
	if s.record.Carrier == carrierLibxdp {
		missing, err := s.lacksComponents(ctx)
		if !missing || err != nil {
			return "", err
		}
		return "programs joined libxdp's dispatcher again", s.reconcile(ctx, "", leaveItSo)
	}
	// The kernel empties a program array that nobody pins any more.
	for pin, needed := range map[string]bool{slotsPin: s.set.Slots, countersPin: s.set.Counted} {
		if needed && !pinned(s.pin(pin)) {
			s.set.Members = nil
		}
	}
	if s.set.Program == 0 {
		s.counted = s.options.MemberStats // the record of what runs is gone
	}
	running, _, err := s.running()
	if err != nil || running == s.set.Program && s.isWanted(s.set) {
		return "", err
	}
	return "the program of its members replaced another one", s.reconcile(ctx, "", leaveItSo)
}

// startAgain is for a point at which nothing of ours runs any more.
func (s *site) startAgain(ctx context.Context) (did string, err error) {
	_, err = s.inNetNS(func() error {
		if name, err := interfaceName(s.IfIndex); name == "" || name != s.record.Interface || err != nil {
			return err
		}
		// Without this look, each try would cost the verifier's time.
		if s.Kind == volume.KindXDP {
			theirs, err := s.xdpProgram()
			if err != nil || theirs == s.set.Program && theirs != 0 {
				return err // ours, by a link that the kernel is about to end: its pin was removed
			}
			if theirs != 0 && !s.hasLibxdp(ctx) {
				return s.foreign(theirs)
			}
		}
		mode := s.record.Mode
		if s.record.Carrier == carrierLibxdp {
			mode = volume.XDPAuto // its dispatcher decides
		}
		if err := pin.Remove(s.pin(linkPin)); err != nil { // of a link that ended
			return err
		}
		did = "what had been detached was attached again"
		return s.reconcile(ctx, mode, start)
	})
	return did, err
}

// interfaceName is the name of the interface with an index in the calling thread's network namespace, "" if there is none.
func interfaceName(index int) (string, error) {
	l, err := netlink.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("interface %d: %w", index, err)
	}
	return l.Attrs().Name, nil
}

func pinned(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// lacksComponents reports whether a member is not among the components of libxdp's dispatcher.
func (s *site) lacksComponents(ctx context.Context) (missing bool, err error) {
	ours, err := s.components(s.members)
	if err != nil {
		return false, err
	}
	_, err = s.inNetNS(func() error {
		d, err := s.libxdp().Read(ctx, s.IfIndex)
		if d == nil || err != nil {
			return err
		}
		var run []ebpf.ProgramID
		for _, c := range d.Components {
			run = append(run, c.ID)
		}
		missing = len(ours) < len(s.members) || slices.ContainsFunc(ours, func(id ebpf.ProgramID) bool { return !slices.Contains(run, id) })
		return nil
	})
	return missing, err
}

// repin pins again what the records of members speak of, as long as the kernel has it.
func (s *site) repin() (did []string, err error) {
	for i := range s.members {
		m := &s.members[i]
		names, err := pin.Names(m.pins())
		if err != nil {
			return did, err
		}
		lost := func(name string) bool { return !slices.Contains(names, name) }
		again := func(name string) {
			did = append(did, fmt.Sprintf("program %.64q: %s pinned again", m.Program, name))
		}
		if len(names) == 0 {
			if err := os.MkdirAll(m.pins(), 0o700); err != nil {
				return did, err
			}
		}
		if lost(progPin) {
			if err := s.repinProgram(*m); err != nil {
				return did, fmt.Errorf("%s: program %.64q: its pin is gone: %w", s.Point, m.Program, err)
			}
			again(progPin)
		}
		for j, id := range m.MapIDs {
			if name := mapPin + strconv.Itoa(j); lost(name) {
				if err := s.repinMap(filepath.Join(m.pins(), name), id); err != nil {
					return did, fmt.Errorf("%s: program %.64q: the pin of its map %.64q is gone: %w", s.Point, m.Program, m.Code.Maps[j], err)
				}
				again(name)
			}
		}
		if m.Code.Alone == "" && lost(codePin) {
			// Nobody else has its instructions. It runs on, and from the next change in a slot.
			m.Code, m.MapIDs = m.Code.Lost(noCode), nil
			if err := s.pinRecord(filepath.Join(m.dir, recordPin), memberName, m.memberRecord); err != nil {
				return did, err
			}
			did = append(did, fmt.Sprintf("program %.64q: its code is gone, so it will have a slot", m.Program))
		}
	}
	return did, nil
}

func (s *site) repinProgram(m member) error {
	prog, err := ebpf.NewProgramFromID(m.Own)
	if err != nil {
		return err
	}
	defer prog.Close()
	return s.pinProgram(filepath.Join(m.pins(), progPin), prog)
}

func (s *site) repinMap(path string, id ebpf.MapID) error {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return err
	}
	defer m.Close()
	return s.pinMap(path, m)
}

// noCode is why a program has a slot whose instructions nobody has any more.
const noCode = "its code is no longer pinned"

// Rejoin is Attach for a member whose pins at the point are gone: prog is what its volume has pinned. It attaches in the
// point's own network namespace, and nowhere if that or the interface is gone, or is called otherwise now.
func (d *Dispatcher) Rejoin(ctx context.Context, p Point, mode volume.XDPMode, m Member, prog *ebpf.Program) (done bool, err error) {
	_, err = d.namespaces.do(p.NetNS, func() error {
		if name, err := interfaceName(p.IfIndex); name == "" || name != p.Interface || err != nil {
			return err
		}
		done = true
		_, err := d.Attach(ctx, p, mode, m, Program{Program: prog})
		return err
	})
	return done, err
}

// adopt writes the record of a point anew whose link has none: somebody removed it. A crash never leaves that.
func (s *site) adopt() error {
	l, err := (bpfLink{}).open(s)
	if l == nil || err != nil {
		return err
	}
	defer l.Close()
	r := pointRecord{Carrier: carrierXDP}
	if s.Kind == volume.KindTC {
		r.Carrier = carrierTCX
	}
	_, err = s.inNetNS(func() error {
		i, err := netlink.LinkByIndex(s.IfIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s: %w", s.Point, err)
		}
		s.Interface = i.Attrs().Name
		if xdp := i.Attrs().Xdp; s.Kind == volume.KindXDP && xdp != nil {
			if r.Mode = volume.XDPNative; xdp.AttachMode == attachedGeneric {
				r.Mode = volume.XDPGeneric
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.pinPoint(r)
}

// attachedGeneric is XDP_ATTACHED_SKB of include/uapi/linux/if_link.h.
const attachedGeneric = 2

// InNetNS calls f in the network namespace with a cookie. found is false if no process and no mount holds it.
func (d *Dispatcher) InNetNS(cookie uint64, f func() error) (found bool, err error) {
	return d.namespaces.do(cookie, f)
}
