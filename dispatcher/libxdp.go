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

	"github.com/bpfvol/bpfvol/internal/libxdp"
	"github.com/bpfvol/bpfvol/internal/pin"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// libxdpDispatcher carries members by the protocol of libxdp: each is a component of the dispatcher that the interface
// has, beside those of others. Nothing is fused, so there is no set and no program of ours to swap.
type libxdpDispatcher struct{}

// componentPin is a member's own program, loaded as a component, beside its other pins. It comes before the component
// runs and goes after it has ended, so that whatever runs is known.
const componentPin = "component"

func (s *site) libxdp() libxdp.Protocol { return libxdp.Protocol{Dir: s.options.LibXDPDir} }

// running returns the dispatcher, if a member of ours is one of its components.
func (libxdpDispatcher) running(s *site) (id ebpf.ProgramID, ok bool, err error) {
	ours, err := s.components(s.members)
	if err != nil {
		return 0, false, err
	}
	_, err = s.inNetNS(func() error {
		d, err := s.libxdp().Read(context.Background(), s.IfIndex)
		if d == nil || err != nil {
			return err
		}
		id = d.ID
		for _, c := range d.Components {
			ok = ok || slices.Contains(ours, c.ID)
		}
		return nil
	})
	if errors.Is(err, libxdp.ErrForeign) || errors.Is(err, libxdp.ErrNoInterface) {
		return 0, false, nil
	}
	return id, ok, err
}

func (libxdpDispatcher) detach(s *site) error {
	volumes, err := pin.Names(s.pin(membersDir))
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := s.removeComponents(context.Background(), v); err != nil {
			return err
		}
	}
	return nil
}

// hasLibxdp reports whether the interface has a dispatcher of libxdp that members can join.
func (s *site) hasLibxdp(ctx context.Context) bool {
	d, err := s.libxdp().Read(ctx, s.IfIndex)
	return err == nil && d != nil
}

// joinLibxdp makes every member a component with its settings. The point record is first: it says who ends what runs.
func (s *site) joinLibxdp(ctx context.Context, mode volume.XDPMode) error {
	if err := s.complete(); err != nil {
		return err
	}
	if s.record.Carrier != carrierLibxdp {
		if err := s.pinPoint(pointRecord{Carrier: carrierLibxdp}); err != nil {
			return err
		}
	}
	for i := range s.members {
		prog, err := s.openComponent(&s.members[i])
		if err != nil {
			return fmt.Errorf("%s: %w", s.Point, err)
		}
		prog.Close()
	}
	if err := s.complete(); err != nil {
		return err
	}
	found, err := s.inNetNS(func() error {
		for i := range s.members {
			if err := s.joinMember(ctx, &s.members[i], mode); err != nil {
				return fmt.Errorf("%s: %w", s.Point, err)
			}
		}
		d, err := s.libxdp().Read(ctx, s.IfIndex)
		if d == nil || err != nil || d.Mode == s.record.Mode {
			return err
		}
		return s.pinPoint(pointRecord{Carrier: carrierLibxdp, Mode: d.Mode})
	})
	if err == nil && !found {
		return fmt.Errorf("%s: the network namespace is gone", s.Point)
	}
	return err
}

func (s *site) joinMember(ctx context.Context, m *member, mode volume.XDPMode) error {
	prog, err := s.openComponent(m)
	if err != nil {
		return err
	}
	defer prog.Close()
	before, err := s.replaced(*m)
	if err != nil {
		return err
	}
	o := libxdp.Options{Mode: mode, Replaces: before, Run: libxdp.Run{Priority: uint32(m.Priority), Frags: m.Code.HasFrags()}}
	for _, verdict := range proceed(s.Kind, m.ProceedOn) {
		o.ProceedOn |= 1 << verdict
	}
	err = s.libxdp().Add(ctx, s.IfIndex, prog, o)
	switch {
	case errors.Is(err, libxdp.ErrFull):
		return &FullError{Point: s.Point, Member: m.Member, Why: err.Error()}
	case errors.Is(err, libxdp.ErrMode):
		return &ModeError{Point: s.Point, Has: s.record.Mode, Wants: mode, Holder: m.Member}
	case errors.Is(err, libxdp.ErrNoInterface):
		return missing(s.Interface, err)
	case errors.Is(err, libxdp.ErrForeign):
		return errors.Join(s.foreignXDP(), err)
	case err != nil:
		return err
	}
	s.reached("component added")
	return nil
}

// openComponent opens the program of a member as a component, and loads and pins it the first time.
func (s *site) openComponent(m *member) (*ebpf.Program, error) {
	pin := filepath.Join(m.pins(), componentPin)
	prog, err := ebpf.LoadPinnedProgram(pin, nil)
	if !errors.Is(err, os.ErrNotExist) {
		return prog, err
	}
	if err := m.readCode(); err != nil {
		return nil, err
	}
	if m.Code.Alone != "" {
		return nil, fmt.Errorf("program %.64q: it cannot run beside libxdp's programs, since %s: %w", m.Program, m.Code.Alone, ebpf.ErrNotSupported)
	}
	l := &loading{site: s, maps: map[ebpf.MapID]*ebpf.Map{}}
	defer l.close()
	fds, err := l.descriptors(*m)
	if err != nil {
		return nil, err
	}
	prog, err = libxdp.Load(m.Code.Spec(fds), s.types)
	if errors.As(err, new(*libxdp.LoadError)) { // alone, the kernel took it
		return nil, fmt.Errorf("%w: %w", err, ebpf.ErrNotSupported)
	} else if err != nil {
		return nil, err
	}
	if err := s.pinProgram(pin, prog); err != nil {
		return nil, errors.Join(fmt.Errorf("program %.64q: pin component: %w", m.Program, err), prog.Close())
	}
	s.reached("component pinned")
	return prog, nil
}

// replaced returns the component of the program that a member had before, 0 if there is none.
func (s *site) replaced(m member) (ebpf.ProgramID, error) {
	names, err := pin.Names(m.dir)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if own, err := strconv.Atoi(name); err == nil && ebpf.ProgramID(own) != m.Own {
			return pinnedID(filepath.Join(m.dir, name, componentPin))
		}
	}
	return 0, nil
}

// components returns the ids of the components of members.
func (s *site) components(members []member) (ids []ebpf.ProgramID, err error) {
	for _, m := range members {
		id, err := pinnedID(filepath.Join(m.pins(), componentPin))
		if err != nil {
			return nil, err
		}
		if id != 0 {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// pinnedID returns the id of a pinned program; 0 if there is no such pin.
func pinnedID(path string) (ebpf.ProgramID, error) {
	prog, err := ebpf.LoadPinnedProgram(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	defer prog.Close()
	return programID(prog)
}

// removeComponents ends the components of a volume, complete members or not.
func (s *site) removeComponents(ctx context.Context, volume string) error {
	pins, err := filepath.Glob(s.pin(membersDir, volume, "*", "*", componentPin))
	if err != nil {
		return err
	}
	for _, pin := range pins {
		if err := s.removeComponent(ctx, pin); err != nil {
			return err
		}
	}
	return nil
}

// endComponent ends the component of a member that could not attach, if it is one.
func (s *site) endComponent(ctx context.Context, m Member, own ebpf.ProgramID) error {
	if s.record.Carrier != carrierLibxdp {
		return nil
	}
	return s.removeComponent(ctx, s.pin(membersDir, m.Volume, volume.FileName(m.Program), strconv.Itoa(int(own)), componentPin))
}

func (s *site) removeComponent(ctx context.Context, pin string) error {
	id, err := pinnedID(pin)
	if id == 0 || err != nil {
		return err
	}
	found, err := s.inNetNS(func() error { return s.libxdp().Remove(ctx, s.IfIndex, id) })
	if err == nil && !found {
		err = s.libxdp().Forget(ctx, s.IfIndex, id)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.Point, err)
	}
	s.reached("component removed")
	return nil
}
