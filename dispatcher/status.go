// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// PointStatus is a point as it is in the kernel now.
type PointStatus struct {
	Point
	Carrier string         // xdp, tcx, clsact or libxdp
	Mode    volume.XDPMode // native or generic; empty for TC
	Link    link.ID        // 0 where there is none: clsact
	Program Loaded         // what packets meet
	Members []MemberStatus // in the order they run
	// Severed says that nothing runs: the interface, or what attached the members, is gone.
	Severed bool
	// Foreign runs where nothing of ours does any more: it took the place.
	Foreign Loaded
	// Moved says that the interface is in another network namespace now, and the members with it.
	Moved bool
}

// MemberStatus is a member, its own program, and how it runs.
type MemberStatus struct {
	Member
	Loaded Loaded
	Way    Way     // empty: it does not run
	Why    string  // it has a slot
	Counts *Counts // nil where nothing is counted
}

// Loaded names a loaded program.
type Loaded struct {
	ID   ebpf.ProgramID
	Name string // at most 15 bytes
}

// Status reads every point back from its pins and the kernel, sorted by interface. A point that is being changed is
// waited for. One that cannot be read is an error, and hides no other.
func (d *Dispatcher) Status() ([]PointStatus, error) {
	points, err := d.Points()
	if err != nil {
		return nil, err
	}
	var all []PointStatus
	var errs []error
	for _, p := range points {
		st, err := d.status(p)
		if err != nil {
			errs = append(errs, err)
		} else if st != nil {
			all = append(all, *st)
		}
	}
	slices.SortFunc(all, func(a, b PointStatus) int {
		return cmp.Or(cmp.Compare(a.NetNS, b.NetNS), cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.IfIndex, b.IfIndex),
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Direction, b.Direction))
	})
	return all, errors.Join(errs...)
}

func (d *Dispatcher) status(p Point) (_ *PointStatus, err error) {
	s, err := d.open(context.Background(), p, false)
	if s == nil || err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if len(s.members) == 0 {
		return nil, nil
	}
	st := &PointStatus{Point: s.Point, Carrier: s.record.Carrier, Mode: s.record.Mode}
	id, alive, err := s.running()
	if err != nil {
		return nil, err
	}
	st.Severed = !alive
	if !alive && s.Kind == volume.KindXDP {
		if st.Foreign, err = s.whoTookIt(); err != nil {
			return nil, err
		}
	}
	if id != 0 {
		st.Program = Loaded{ID: id, Name: programName(id)}
	}
	if l, err := (bpfLink{}).open(s); err != nil {
		return nil, err
	} else if l != nil {
		st.Link = l.id
		l.Close()
	}
	if st.Moved, err = s.hasMoved(); err != nil {
		return nil, err
	}
	counts, err := s.counts()
	if err != nil {
		return nil, err
	}
	for i, m := range s.members {
		ms := MemberStatus{Member: m.Member, Loaded: Loaded{ID: m.Own, Name: m.Code.Name}, Counts: counts[i]}
		for _, p := range s.set.Members {
			if alive && p.same(m.Member) {
				ms.Way, ms.Why = p.Way, p.Why
			}
		}
		if alive && s.record.Carrier == carrierLibxdp {
			ms.Way = LibXDP
		}
		st.Members = append(st.Members, ms)
	}
	return st, nil
}

// whoTookIt returns the XDP program of somebody else that runs on the interface; zero if there is none, or no interface.
func (s *site) whoTookIt() (theirs Loaded, err error) {
	_, err = s.inNetNS(func() error {
		id, err := s.xdpProgram()
		if id != 0 && id != s.set.Program {
			theirs = Loaded{ID: id, Name: programName(id)}
		}
		return err
	})
	return theirs, err
}
