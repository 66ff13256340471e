// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/netns"
	"github.com/bpfvol/bpfvol/internal/pin"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// maxTries is how often a change starts over because another came first; libxdp's MAX_RETRY is the same.
const maxTries = 10

// edit returns the components that are to run instead of those that do, in any order, and whether they differ. Those
// that run stay the caller's to close.
type edit func(running []*slot) (wanted []*slot, changed bool, err error)

// change changes which components run on an interface. The caller holds our lock. mode is for a dispatcher that is yet
// to be attached.
func (p Protocol) change(ctx context.Context, ifindex int, mode volume.XDPMode, e edit) error {
	for range maxTries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := p.try(ctx, ifindex, mode, e); !errors.Is(err, errRaced) {
			return err
		}
	}
	return fmt.Errorf("libxdp's dispatcher: %w each time while its successor was built; try again", errRaced)
}

// try is change up to the moment when somebody else changes the interface: errRaced.
func (p Protocol) try(ctx context.Context, ifindex int, mode volume.XDPMode, e edit) error {
	var old *opened
	err := p.locked(ctx, func() (err error) {
		old, err = p.open(ifindex)
		return err
	})
	if err != nil {
		return err
	}
	defer old.close()
	wanted, changed, err := e(old.slotsOf())
	if err != nil {
		return err
	}
	s := swap{ifindex: ifindex, old: old, modes: []volume.XDPMode{mode}}
	switch {
	case old == nil && (mode == "" || mode == volume.XDPAuto):
		s.modes = []volume.XDPMode{volume.XDPNative, volume.XDPGeneric}
	case old == nil:
	case mode == "" || mode == volume.XDPAuto || mode == old.mode:
		s.modes = []volume.XDPMode{old.mode}
	default:
		return fmt.Errorf("%w: %s, and %s is asked for; use mode auto", ErrMode, old.mode, mode)
	}
	if !changed {
		return nil
	}
	if len(wanted) > 0 {
		if s.fresh, err = build(p.version(old), wanted); err != nil {
			return err
		}
		defer s.fresh.close()
	}
	return p.swap(ctx, s)
}

// version is that of the dispatcher that takes the place of another: the same, so that who wrote that one still knows
// it.
func (p Protocol) version(old *opened) uint8 {
	if old != nil {
		return old.version
	}
	return max(p.Version, version2)
}

// built is a dispatcher that is not attached, with its components attached to it.
type built struct {
	prog  *ebpf.Program
	id    ebpf.ProgramID
	frags bool
	slots []*slot     // of the caller
	links []link.Link // of the slots
}

func (b *built) close() {
	for _, l := range b.links {
		l.Close()
	}
	b.prog.Close()
}

// build loads a dispatcher and attaches its components. They need not be loaded anew: since Linux 5.10 they can be
// attached to several dispatchers at once.
func build(version uint8, slots []*slot) (_ *built, err error) {
	sortSlots(slots)
	c := config{version: version, frags: true}
	var actions []uint32
	for _, s := range slots {
		actions = append(actions, s.ProceedOn)
		c.frags = c.frags && s.Frags
		c.slots = append(c.slots, slotConfig{actions: s.ProceedOn | alwaysProceed, priority: s.Priority, flags: s.flags})
	}
	var flags uint32
	if c.frags {
		flags = hasFrags
	}
	prog, err := ebpf.NewProgram(generate(dispatcherName, actions, flags))
	if err != nil {
		return nil, fmt.Errorf("load a dispatcher of libxdp: %w", err)
	}
	b := &built{prog: prog, frags: c.frags, slots: slots}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	info, err := prog.Info()
	if err != nil {
		return nil, err
	}
	b.id, _ = info.ID()
	m, err := newConfigMap(c)
	if err != nil {
		return nil, fmt.Errorf("configuration of a dispatcher of libxdp: %w", err)
	}
	defer m.Close()
	// No instruction uses the map: what it says is compiled in. It is there to be read, by libxdp and by us.
	if err := prog.BindMap(m); err != nil {
		return nil, fmt.Errorf("configuration of a dispatcher of libxdp: %w", err)
	}
	for i, s := range slots {
		l, err := link.AttachFreplace(prog, target(i, len(slots)), s.prog)
		if errors.Is(err, unix.EPERM) {
			return nil, refusal(err)
		} else if err != nil {
			return nil, fmt.Errorf("component %.32q (id %d): attach to the next dispatcher of libxdp: %w", s.Name, s.ID, err)
		}
		b.links = append(b.links, l)
	}
	return b, nil
}

// pin pins the components of a dispatcher and their links as protocol.org has it, as far as they are not. What fails
// half-way is the caller's to dismantle.
func (b *built) pin(dir string, reached func(string)) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		reached("made directory")
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	for i, s := range b.slots {
		// Pinning s.prog itself would move the pin it was loaded from.
		prog, err := s.prog.Clone()
		if err != nil {
			return err
		}
		defer prog.Close()
		for _, p := range []struct {
			name   string
			object interface {
				Pin(string) error
				Unpin() error
			}
		}{{linkPin(i), b.links[i]}, {progPin(i), prog}} {
			path := filepath.Join(dir, p.name)
			if _, err := os.Lstat(path); err == nil {
				continue
			}
			// An object remembers where it was pinned, and makes that pin only once.
			if err := errors.Join(p.object.Unpin(), p.object.Pin(path)); err != nil {
				return err
			}
			reached("pinned " + p.name)
		}
	}
	return nil
}

// swap is a dispatcher that takes the place of another on an interface. One of the two may be nil.
type swap struct {
	ifindex int
	old     *opened
	fresh   *built
	modes   []volume.XDPMode // to try in this order
}

// swap makes the effects of a change, in the order that the package's doc argues for.
func (p Protocol) swap(ctx context.Context, s swap) error {
	netns, err := netns.Cookie()
	if err != nil {
		return err
	}
	var i intent
	var oldDir, freshDir string
	if s.old != nil {
		i.Old, oldDir = s.old.id, p.dispatchDir(s.ifindex, s.old.id)
	}
	if s.fresh != nil {
		i.Fresh, freshDir = s.fresh.id, p.dispatchDir(s.ifindex, s.fresh.id)
	}
	path := p.intentPath(netns, s.ifindex)
	if err := i.pin(path); err != nil {
		return err
	}
	p.reached("pinned intent")
	if s.fresh != nil {
		err = p.locked(ctx, func() error { return s.fresh.pin(freshDir, p.reached) })
		p.reached("pinned all")
	}
	if err == nil {
		err = s.replace()
	}
	loser := oldDir
	if err != nil {
		loser = freshDir
	} else {
		p.reached("swapped")
	}
	left := p.finally(ctx, func() error {
		if err == nil && s.fresh != nil {
			if err := p.keep(s); err != nil {
				return err
			}
		}
		if loser == "" {
			return nil
		}
		return dismantle(loser, p.reached)
	})
	if left != nil {
		return errors.Join(err, left) // the intent stays, and the next change finishes this one
	}
	err = errors.Join(err, pin.Remove(path))
	p.reached("removed intent")
	return err
}

// keep makes sure that what was just attached is pinned: xdp-loader clean removes the pins of what is not, and it may
// have come before the swap. If the interface has another dispatcher by now, its pins are for that one's maker to
// remove.
func (p Protocol) keep(s swap) error {
	now, err := attached(s.ifindex)
	if errors.Is(err, ErrNoInterface) || errors.Is(err, ErrForeign) || err == nil && now.id != s.fresh.id {
		return nil
	} else if err != nil {
		return err
	}
	return s.fresh.pin(p.dispatchDir(s.ifindex, s.fresh.id), p.reached)
}

func (s swap) replace() (err error) {
	var old, fresh *ebpf.Program
	if s.old != nil {
		old = s.old.prog
	}
	if s.fresh != nil {
		fresh = s.fresh.prog
	}
	for _, mode := range s.modes {
		if err = replace(s.ifindex, mode, old, fresh); !errors.Is(err, ebpf.ErrNotSupported) {
			break
		}
	}
	switch {
	case errors.Is(err, errRaced) && s.old != nil:
		// Or a bpf_link holds it: then it is still the same.
		if now, err := attached(s.ifindex); err == nil && now.id == s.old.id {
			return &ForeignError{ID: now.id, Name: dispatcherName, Why: "a bpf_link holds it"}
		}
	case s.fresh != nil && !s.fresh.frags && (errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINVAL)):
		return fmt.Errorf("%w; with a large MTU every component must have frags, and these have not: %s", err, s.fresh.withoutFrags())
	}
	return err
}

// withoutFrags names the components that keep a dispatcher from having frags.
func (b *built) withoutFrags() string {
	var names []string
	for _, s := range b.slots {
		if !s.Frags {
			names = append(names, fmt.Sprintf("%.32q", s.Name))
		}
	}
	return strings.Join(names, ", ")
}
