// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// clsact carries a program by a filter of the clsact qdisc, for kernels without TCX. A filter belongs to the interface:
// it needs no pin to live, and ends with the interface.
type clsact struct{}

// Where the filter stands: the priority decides its order among the filters of others, the name tells it from theirs.
const (
	filterPriority = 500
	filterHandle   = 0xbf
	filterName     = "bpfvol"
)

// lockQdiscs keeps qdiscs as they are until the file is closed: both directions of an interface share one, and each has a
// lock of its own.
func (s *site) lockQdiscs() (*os.File, error) { return lockDir(context.Background(), s.root) }

// startClsact pins the record before it adds qdisc and filter, so that what is ours always has a record.
func (s *site) startClsact(prog *ebpf.Program) error {
	lock, err := s.lockQdiscs()
	if err != nil {
		return err
	}
	defer lock.Close()
	ours, err := s.ownsQdisc()
	if err != nil {
		return err
	}
	if err := s.pinPoint(pointRecord{Carrier: carrierClsact, Qdisc: ours}); err != nil {
		return err
	}
	err = netlink.QdiscAdd(s.qdisc())
	if errors.Is(err, unix.ENODEV) {
		return missing(s.Interface, err)
	} else if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: add clsact: %w", s.Point, err)
	}
	s.reached("qdisc added")
	err = netlink.FilterAdd(s.filter(prog.FD()))
	if errors.Is(err, unix.EEXIST) {
		other, findErr := s.findFilter()
		if other != nil {
			return s.foreign(ebpf.ProgramID(other.Id))
		}
		err = errors.Join(err, findErr)
	}
	if err != nil {
		return fmt.Errorf("%s: add filter: %w", s.Point, err)
	}
	s.reached("filter added")
	return nil
}

func (s *site) filter(fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: s.IfIndex, Parent: parentOf(s.Direction), Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd:           fd,
		Name:         filterName,
		DirectAction: true,
	}
}

func parentOf(d volume.Direction) uint32 {
	if d == volume.Egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func (s *site) qdisc() *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: s.IfIndex, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0),
	}}
}

// ownsQdisc reports whether the interface's clsact qdisc is ours: made before, about to be made, or made for the other
// direction.
func (s *site) ownsQdisc() (bool, error) {
	if s.record.Qdisc {
		return true, nil
	}
	qdiscs, err := netlink.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: s.IfIndex}})
	if err != nil && !isGone(err) {
		return false, fmt.Errorf("%s: list qdiscs: %w", s.Point, err)
	}
	if !slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == "clsact" }) {
		return true, nil
	}
	other := s.Point
	other.Direction = volume.Ingress
	if s.Direction == volume.Ingress {
		other.Direction = volume.Egress
	}
	var r pointRecord
	err = readRecord(filepath.Join(s.root, other.dirName(), recordPin), &r)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	return r.Qdisc, nil
}

// removeQdisc removes a qdisc of ours that nobody uses any more, in either direction.
func (s *site) removeQdisc(ours bool) error {
	if !ours {
		return nil
	}
	for _, d := range []volume.Direction{volume.Ingress, volume.Egress} {
		filters, err := s.filters(d)
		if err != nil {
			return err
		}
		if len(filters) > 0 {
			return nil
		}
	}
	if err := netlink.QdiscDel(s.qdisc()); err != nil && !isGone(err) {
		return fmt.Errorf("%s: remove clsact: %w", s.Point, err)
	}
	return nil
}

// isGone reports whether netlink says that interface, qdisc or filter does not exist.
func isGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)
}

// filters lists the filters of one direction; none if interface or qdisc are gone.
func (s *site) filters(d volume.Direction) ([]netlink.Filter, error) {
	filters, err := netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: s.IfIndex}}, parentOf(d))
	if err != nil && !isGone(err) {
		return nil, fmt.Errorf("%s: list filters: %w", s.Point, err)
	}
	return filters, nil
}

// findFilter returns the filter that stands where ours would; nil if there is none.
func (s *site) findFilter() (*netlink.BpfFilter, error) {
	filters, err := s.filters(s.Direction)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if a := f.Attrs(); a.Priority == filterPriority && a.Handle == filterHandle {
			if bpf, ok := f.(*netlink.BpfFilter); ok {
				return bpf, nil
			}
		}
	}
	return nil, nil
}

func isOurs(f *netlink.BpfFilter) bool { return f != nil && strings.HasPrefix(f.Name, filterName) }

func (clsact) running(s *site) (id ebpf.ProgramID, ok bool, err error) {
	_, err = s.inNetNS(func() error {
		f, err := s.findFilter()
		if isOurs(f) {
			id, ok = ebpf.ProgramID(f.Id), true
		}
		return err
	})
	return id, ok, err
}

// swap replaces the filter's program in place (cls_bpf_change). The kernel compares nothing: somebody who replaces a
// filter by our name between the two steps loses.
func (clsact) swap(s *site, prog *ebpf.Program, old ebpf.ProgramID) error {
	found, err := s.inNetNS(func() error {
		f, err := s.findFilter()
		if err != nil {
			return err
		}
		if !isOurs(f) || ebpf.ProgramID(f.Id) != old {
			return errRaced
		}
		if err := netlink.FilterReplace(s.filter(prog.FD())); err != nil {
			return fmt.Errorf("%s: replace filter: %w", s.Point, err)
		}
		s.reached("filter replaced")
		return nil
	})
	if err == nil && !found {
		return errRaced
	}
	return err
}

func (clsact) detach(s *site) error {
	lock, err := s.lockQdiscs()
	if err != nil {
		return err
	}
	defer lock.Close()
	_, err = s.inNetNS(func() error {
		f, err := s.findFilter()
		if err != nil {
			return err
		}
		if isOurs(f) {
			if err := netlink.FilterDel(f); err != nil && !isGone(err) {
				return fmt.Errorf("%s: delete filter: %w", s.Point, err)
			}
			s.reached("filter deleted")
		}
		return s.removeQdisc(s.record.Qdisc)
	})
	return err
}
