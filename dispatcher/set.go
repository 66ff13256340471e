// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/pin"
)

// Way is how a member runs.
type Way string

const (
	Plain Way = "plain" // it is the only one, and attached as it is
	Fused Way = "fused" // its instructions are part of the program of the point
	Slot  Way = "slot"  // the program of the point tail-calls it
	Idle  Way = "idle"  // it never runs: a member before it has an empty proceedOn
	// LibXDP is a component of libxdp's dispatcher, beside those of others.
	LibXDP Way = "libxdp"
)

// setRecord says what the program of a point is made of.
type setRecord struct {
	Version int            `json:"version"`
	Program ebpf.ProgramID `json:"program"` // the set runs if this program does
	Members []placed       `json:"members"`
	Slots   bool           `json:"slots,omitempty"`   // there is a program array
	Calls   bool           `json:"calls,omitempty"`   // it may tail-call, by that array or one of a member
	Counted bool           `json:"counted,omitempty"` // verdicts are counted
}

// placed is a member of a set.
type placed struct {
	Member
	Own ebpf.ProgramID `json:"own"`
	Way Way            `json:"way"`
	Why string         `json:"why,omitempty"` // it has a slot, or is idle
}

// addIdle adds members that never run.
func (r *setRecord) addIdle(members []member) {
	for _, m := range members {
		r.Members = append(r.Members, placed{Member: m.Member, Own: m.Own, Way: Idle, Why: "a program before it has an empty proceedOn"})
	}
}

// The set that runs, and the one that is about to. A set's program array comes before its record, so that a record
// speaks of nothing that is not there.
const (
	setPin      = "set"
	slotsPin    = "slots"
	nextSet     = "next-set"
	nextSlots   = "next-slots"
	countersPin = "counters"
)

// readSet finds out what runs, and finishes the change that a crash may have cut short: the program that packets meet
// decides whether the next set has come into force.
func (s *site) readSet() error {
	s.set = setRecord{}
	if err := readRecord(s.pin(setPin), &s.set); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", s.Point, err)
	}
	var next setRecord
	if err := readRecord(s.pin(nextSet), &next); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: %w", s.Point, err)
	}
	id, alive, err := s.running()
	if err != nil {
		return err
	}
	if alive && id == next.Program {
		return s.commit(next)
	}
	return nil
}

// announce pins what is about to run.
func (s *site) announce(b *built) error {
	if err := s.withdraw(); err != nil {
		return err
	}
	if b.slots != nil {
		if err := s.replacePin(s.pin(nextSlots), b.slots.Pin); err != nil {
			return err
		}
		s.reached("next slots pinned")
	}
	if err := s.pinRecord(s.pin(nextSet), "bpfvol_set", b.set); err != nil {
		return err
	}
	s.reached("next set pinned")
	return nil
}

// withdraw is the reverse of announce.
func (s *site) withdraw() error {
	return errors.Join(pin.Remove(s.pin(nextSet)), pin.Remove(s.pin(nextSet+newSuffix)), pin.Remove(s.pin(nextSlots)), pin.Remove(s.pin(nextSlots+newSuffix)))
}

// commit follows an announced set that has come into force.
func (s *site) commit(next setRecord) error {
	if err := s.letPacketsPass(); err != nil {
		return err
	}
	if next.Slots {
		if err := os.Rename(s.pin(nextSlots), s.pin(slotsPin)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	} else if err := pin.Remove(s.pin(slotsPin)); err != nil {
		return err
	}
	s.reached("slots replaced")
	if err := os.Rename(s.pin(nextSet), s.pin(setPin)); err != nil {
		return err
	}
	s.reached("set replaced")
	s.set = next
	return nil
}

// unpinSets removes what says what runs, when nothing does.
func (s *site) unpinSets() error {
	err := s.withdraw()
	for _, name := range []string{setPin, slotsPin, slotsPin + newSuffix, countersPin, countersPin + newSuffix} {
		err = errors.Join(err, pin.Remove(s.pin(name)))
	}
	s.set = setRecord{}
	return err
}

// isWanted reports whether a set is what the members say.
func (s *site) isWanted(set setRecord) bool {
	return set.Counted == s.counted && slices.EqualFunc(set.Members, s.members, func(p placed, m member) bool {
		return p.Member.equal(m.Member) && p.Own == m.Own
	})
}

// letPacketsPass waits for packets that still meet a program that tail-calls, once it no longer is what new ones meet: the
// kernel empties a program array when the last who knows its name lets go of it, though programs still use it.
func (s *site) letPacketsPass() error {
	if !s.set.Calls {
		return nil
	}
	return waitForPackets()
}

// waitForPackets returns when no packet meets a program any more that did when it was called. The kernel promises that
// of a change of a map in a map (maybe_wait_bpf_programs of kernel/bpf/syscall.c).
func waitForPackets() error {
	inner := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	m, err := ebpf.NewMap(inner)
	if err != nil {
		return err
	}
	defer m.Close()
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return err
	}
	defer outer.Close()
	return outer.Put(uint32(0), m)
}
