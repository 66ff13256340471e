// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// maxRaces is how often a change starts over that somebody else came before.
const maxRaces = 10

// errRaced means that what runs changed between being looked at and being replaced. Nobody who takes the point's lock
// does that.
var errRaced = errors.New("somebody else changed what runs")

// errUnfinished means that a change is in force, but not all that it replaces could be taken away. Whoever opens the
// point next tries again.
var errUnfinished = errors.New("changed, but something old is left")

// whereNothingRuns is what reconcile does there. Only the callers of Attach and Repair are sure to be in the network
// namespace of the point, and what has ended is not started for others.
type whereNothingRuns bool

const (
	start     whereNothingRuns = true
	leaveItSo whereNothingRuns = false
)

// reconcile makes run what the members say, of whom there is at least one. mode is for XDP where it starts.
func (s *site) reconcile(ctx context.Context, mode volume.XDPMode, otherwise whereNothingRuns) error {
	for range maxRaces {
		running, alive, err := s.running()
		if err != nil {
			return err
		}
		if !alive && otherwise == leaveItSo {
			return nil
		}
		if s.record.Carrier == carrierLibxdp || !alive && s.Kind == volume.KindXDP && s.options.LibXDP {
			return s.joinLibxdp(ctx, mode)
		}
		if alive && running == s.set.Program && s.isWanted(s.set) {
			// What a crash left of a change that did not happen goes; a member whose record somebody removed gets it back.
			return errors.Join(s.complete(), s.withdraw())
		}
		err = s.change(running, alive, mode)
		if !alive && errors.Is(err, ErrForeign) && s.hasLibxdp(ctx) {
			return s.joinLibxdp(ctx, mode)
		}
		if !errors.Is(err, errRaced) {
			return err
		}
	}
	return fmt.Errorf("%s: %w, %d times in a row", s.Point, errRaced, maxRaces)
}

// change builds the program of the members aside and lets it take the place of what runs in one step.
func (s *site) change(running ebpf.ProgramID, alive bool, mode volume.XDPMode) (err error) {
	b, err := s.build()
	if err != nil {
		return err
	}
	defer b.close()
	s.reached("program loaded")
	if err := s.complete(); err != nil {
		return err
	}
	if err := s.announce(b); err != nil {
		return errors.Join(err, s.withdraw())
	}
	if alive {
		err = s.carrier().(swapper).swap(s, b.prog, running)
	} else {
		err = s.start(b.prog, mode)
	}
	if err != nil {
		return errors.Join(err, s.withdraw())
	}
	if err := s.commit(b.set); err != nil {
		return fmt.Errorf("%w: %w", errUnfinished, err)
	}
	return nil
}

// start makes the first program of a point run.
func (s *site) start(prog *ebpf.Program, mode volume.XDPMode) error {
	if s.Kind == volume.KindXDP {
		return s.startXDP(prog, mode)
	}
	if !s.classic {
		err := s.startTCX(prog)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	return s.startClsact(prog)
}
