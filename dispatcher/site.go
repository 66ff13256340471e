// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/pin"
)

// site is a point that the caller holds locked, as read back from its pins.
type site struct {
	*Dispatcher
	Point
	dir     string
	lock    *os.File
	record  pointRecord // zero: nothing was attached
	members []member    // complete ones and the one that is about to be, in the order they run
	set     setRecord   // what runs; zero: nothing
	counted bool        // verdicts are to be counted; as they are until somebody with another opinion changes it
	joining Member      // who attaches; zero: nobody

	incomplete *member // of members; nil: all have their record
}

const (
	recordPin  = "record"
	linkPin    = "link"
	membersDir = "members"
)

// open locks a point and reads it. Without create, a point that does not exist is nil.
func (d *Dispatcher) open(ctx context.Context, p Point, create bool) (_ *site, err error) {
	s := &site{Dispatcher: d, Point: p, dir: filepath.Join(d.root, p.dirName())}
	for s.lock == nil {
		if create {
			if err := d.makeDir(s.dir); err != nil {
				return nil, err
			}
		}
		s.lock, err = lockDir(ctx, s.dir)
		if errors.Is(err, os.ErrNotExist) {
			if !create {
				return nil, nil
			}
			continue // removed by the member that left
		} else if err != nil {
			return nil, err
		}
	}
	if err := s.read(); err != nil {
		s.lock.Close()
		return nil, err
	}
	return s, nil
}

// makeDir makes the directory of a point, and that of all points. Another caller may be removing the latter.
func (d *Dispatcher) makeDir(dir string) error {
	for {
		if err := os.MkdirAll(d.root, 0o700); err != nil && !errors.Is(err, os.ErrExist) { // MkdirAll found it, and then did not
			return err
		}
		err := os.Mkdir(dir, 0o700)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case errors.Is(err, os.ErrExist):
			return nil
		case err != nil:
			return err
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err == nil && fs.Type != unix.BPF_FS_MAGIC {
			os.Remove(dir)
			return fmt.Errorf("%s: not on a bpffs; mount one: mount -t bpf bpf /sys/fs/bpf", d.root)
		}
		return nil
	}
}

// lockDir locks a directory and makes sure that it is still there. Closing the file unlocks.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	for {
		f, err := pin.Lock(ctx, dir, "another change of the same hook")
		if err != nil {
			return nil, err
		}
		locked, err1 := f.Stat()
		now, err2 := os.Stat(dir)
		if err1 == nil && err2 == nil && os.SameFile(locked, now) {
			return f, nil
		}
		f.Close()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
	}
}

// read takes the state of the point from its pins.
func (s *site) read() error {
	switch err := readRecord(s.pin(recordPin), &s.record); {
	case errors.Is(err, os.ErrNotExist):
		if err := s.adopt(); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("%s: %w", s.Point, err)
	}
	if s.Interface == "" {
		s.Interface = s.record.Interface
	}
	if err := s.readMembers(); err != nil {
		return err
	}
	if err := s.readSet(); err != nil {
		return err
	}
	s.counted = s.set.Counted
	return nil
}

// close unlocks the point and, if nothing is at it, removes its directory.
func (s *site) close() error {
	var errs []error
	for _, dir := range []string{s.pin(membersDir), s.dir} {
		if err := pin.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

func (s *site) pin(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

// pinPoint writes the record of a point where something runs, or is about to.
func (s *site) pinPoint(r pointRecord) error {
	r.Version, r.Interface = recordVersion, s.Interface
	if err := s.pinRecord(s.pin(recordPin), "bpfvol_point", r); err != nil {
		return err
	}
	s.record = r
	s.reached("point record pinned")
	return nil
}

// stop detaches what is attached and forgets it. The members stay.
func (s *site) stop() error {
	if s.record != (pointRecord{}) {
		if err := s.carrier().detach(s); err != nil {
			return err
		}
		if err := errors.Join(pin.Remove(s.pin(recordPin+newSuffix)), pin.Remove(s.pin(recordPin))); err != nil {
			return err
		}
		s.record = pointRecord{}
		s.reached("point record removed")
	} else if err := pin.Remove(s.pin(recordPin + newSuffix)); err != nil {
		return err
	}
	if err := s.letPacketsPass(); err != nil {
		return err
	}
	return s.unpinSets()
}

// clear is stop, and removes all members, complete or not.
func (s *site) clear() error {
	if err := s.stop(); err != nil {
		return err
	}
	volumes, err := pin.Names(s.pin(membersDir))
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := s.unpinMembers(v); err != nil {
			return err
		}
	}
	s.members = nil
	return nil
}

// Points lists the points that have a directory.
func (d *Dispatcher) Points() ([]Point, error) {
	names, err := pin.Names(d.root)
	if err != nil {
		return nil, err
	}
	var points []Point
	for _, name := range names {
		if p, ok := parsePoint(name); ok {
			points = append(points, p)
		}
	}
	return points, nil
}

// look reports, without a lock, whether a volume has something at a point, and whether nothing at all has.
func (d *Dispatcher) look(p Point, volume string) (mine, empty bool, err error) {
	volumes, err := pin.Names(filepath.Join(d.root, p.dirName(), membersDir))
	if errors.Is(err, unix.ENOTDIR) {
		err = nil // somebody's pin of that name holds no members
	}
	return slices.Contains(volumes, volume), err == nil && len(volumes) == 0, err
}

// removeEmpty removes the directory of all points when the last is gone.
func (d *Dispatcher) removeEmpty() { os.Remove(filepath.Clean(d.root)) }
