// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/dispatcher/fuse"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Counts is how often a member ran and what it returned, since it attached.
type Counts struct {
	Packets  uint64            `json:"packets"`
	Verdicts map[string]uint64 `json:"verdicts"` // by name; "other" for what has none
}

// openCounters opens the counters of the point, which it has from when it first counts until it goes.
func (s *site) openCounters() (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(s.pin(countersPin), nil)
	if !errors.Is(err, os.ErrNotExist) {
		return m, err
	}
	m, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "bpfvol_counters", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: uint32(len(fuse.Counters{}) * 8), MaxEntries: maxMembers,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: counters: %w", s.Point, err)
	}
	if err := s.pinMap(s.pin(countersPin), m); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: counters: %w", s.Point, err), m.Close())
	}
	s.reached("counters pinned")
	return m, nil
}

// resetCounters sets a new member's counters to zero: another may have had them.
func (s *site) resetCounters(m member) error {
	counters, err := ebpf.LoadPinnedMap(s.pin(countersPin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer counters.Close()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	return counters.Put(uint32(m.Counter), make([]fuse.Counters, cpus))
}

// counts reads the counters of the members, in their order; nil if the running set does not count.
func (s *site) counts() ([]*Counts, error) {
	all := make([]*Counts, len(s.members))
	if !s.set.Counted {
		return all, nil
	}
	counters, err := ebpf.LoadPinnedMap(s.pin(countersPin), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: counters: %w", s.Point, err)
	}
	defer counters.Close()
	for i, m := range s.members {
		var perCPU []fuse.Counters
		if err := counters.Lookup(uint32(m.Counter), &perCPU); err != nil {
			return nil, fmt.Errorf("%s: counters: %w", s.Point, err)
		}
		all[i] = sum(s.Kind, perCPU)
	}
	return all, nil
}

func sum(kind volume.Kind, perCPU []fuse.Counters) *Counts {
	c := &Counts{Verdicts: map[string]uint64{}}
	for _, counters := range perCPU {
		for i, n := range counters {
			if n == 0 {
				continue
			}
			name := "other"
			if code, ok := fuse.Verdict(i); ok {
				for verdict, known := range verdicts(kind) {
					if known == code {
						name = string(verdict)
					}
				}
			}
			c.Packets += n
			c.Verdicts[name] += n
		}
	}
	return c
}
