// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/dispatcher/fuse"
	"github.com/bpfvol/bpfvol/internal/pin"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Member is one program at a point.
type Member struct {
	Volume    string           `json:"volume"` // volume.FileName of its id
	Program   string           `json:"program"`
	Priority  int              `json:"priority"`            // lower runs first
	ProceedOn []volume.Verdict `json:"proceedOn,omitempty"` // verdicts that let later members run
}

// same reports whether two members are one, perhaps with other settings.
func (m Member) same(other Member) bool {
	return m.Volume == other.Volume && m.Program == other.Program
}

func (m Member) equal(other Member) bool {
	return m.same(other) && m.Priority == other.Priority && slices.Equal(m.ProceedOn, other.ProceedOn)
}

// Order sorts members as they run: lower priority first, ties by volume and program. It depends on the set alone, so a
// restart builds the same chain.
func Order(members []Member) { slices.SortFunc(members, compare) }

func compare(a, b Member) int {
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Program, b.Program))
}

// Program is what a member runs, loaded alone, and what it was loaded from; without Spec it is never fused.
type Program struct {
	*ebpf.Program
	Spec *ebpf.ProgramSpec
	Maps map[string]*ebpf.Map // by the names in Spec's instructions
}

// memberRecord is a member and all that its point must know to run it, beside the pins.
type memberRecord struct {
	Version int `json:"version"`
	Member
	Code     *fuse.Code     `json:"code"`
	MapIDs   []ebpf.MapID   `json:"mapIDs,omitempty"`
	Own      ebpf.ProgramID `json:"own"`                // the program loaded alone
	Verified uint32         `json:"verified,omitempty"` // instructions that the verifier looked at
	Counter  int            `json:"counter"`            // of the point's counters
}

// member is a record and its directory.
type member struct {
	memberRecord
	dir string
}

// pins is where the programs and maps of the member are, as they are now: a replacement gets a directory of its own.
func (m member) pins() string { return filepath.Join(m.dir, strconv.Itoa(int(m.Own))) }

const (
	progPin = "prog"
	codePin = "code"
	mapPin  = "map" // and the index of Code.Maps
)

// maxMembers bounds what is at one point; each has its counters.
const maxMembers = 256

// memberRecord makes the record of a member that is about to run.
func (s *site) memberRecord(m Member, prog Program) (*memberRecord, error) {
	r := &memberRecord{Version: recordVersion, Member: m}
	info, err := prog.Info()
	if err != nil {
		return nil, err
	}
	id, ok := info.ID()
	if !ok {
		return nil, fmt.Errorf("program id: %w", ebpf.ErrNotSupported)
	}
	r.Own = id
	r.Verified, _ = info.VerifiedInstructions()
	if prog.Spec == nil {
		r.Code = (&fuse.Code{Name: info.Name, Type: prog.Type()}).Lost(noCode)
	} else if r.Code, err = fuse.Settle(prog.Spec, s.types); err != nil {
		return nil, err
	}
	var fds []int
	for _, name := range r.Code.Maps {
		if prog.Maps[name] == nil {
			return nil, fmt.Errorf("program %.64q: map %.64q is not given", m.Program, name)
		}
		info, err := prog.Maps[name].Info()
		if err != nil {
			return nil, fmt.Errorf("map %.64q: %w", name, err)
		}
		id, _ := info.ID()
		r.MapIDs = append(r.MapIDs, id)
		fds = append(fds, prog.Maps[name].FD())
	}
	askFrames(r.Code, fds)
	if r.Counter, err = s.freeCounter(m); err != nil {
		return nil, err
	}
	return r, nil
}

// deepFrame is how deep an estimated stack may be without the verifier being asked: one that fits beside slots.
const deepFrame = 200

// askFrames asks the verifier how much stack the code of a member takes, where the estimate would make a difference. If
// the kernel does not say, the estimate stays.
func askFrames(c *fuse.Code, fds []int) {
	if c.Alone != "" {
		return
	}
	if s := c.Shape(); s.Frame+s.Calls <= deepFrame {
		return
	}
	prog, err := ebpf.NewProgramWithOptions(c.Spec(fds), ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats})
	if err != nil {
		return
	}
	defer prog.Close()
	_ = c.ParseFrames(prog.VerifierLog)
}

// freeCounter returns the counters of a member that is there, else the first that nobody has.
func (s *site) freeCounter(m Member) (int, error) {
	var used [maxMembers]bool
	for _, have := range s.members {
		if have.same(m) {
			return have.Counter, nil
		}
		used[have.Counter] = true
	}
	free := slices.Index(used[:], false)
	if free < 0 {
		return 0, &FullError{Point: s.Point, Member: m, Why: fmt.Sprintf("%d programs run there already", maxMembers)}
	}
	return free, nil
}

// pinMember adds a member, or gives it another program and settings. It is incomplete until its record is pinned, which
// waits until a program of all members is made: one that cannot be there must not hold up others after a crash. undo makes
// the member what it was.
func (s *site) pinMember(m Member, prog Program) (undo func() error, err error) {
	r, err := s.memberRecord(m, prog)
	if err != nil {
		return nil, err
	}
	now := member{memberRecord: *r, dir: s.pin(membersDir, m.Volume, volume.FileName(m.Program))}
	before := slices.IndexFunc(s.members, func(have member) bool { return have.same(m) })
	undo = func() error { return s.unpinMember(now.dir) }
	if before >= 0 {
		was := s.members[before]
		undo = func() error {
			return errors.Join(s.pinRecord(filepath.Join(was.dir, recordPin), memberName, was.memberRecord), s.sweep(was))
		}
		s.members[before] = now
	} else {
		if err := s.resetCounters(now); err != nil {
			return nil, err
		}
		s.members = append(s.members, now)
	}
	s.sortMembers()
	if err := s.pinCode(now, prog); err != nil {
		return nil, errors.Join(fmt.Errorf("pin program %.64q: %w", m.Program, err), undo())
	}
	s.incomplete = &now
	return undo, nil
}

// complete pins the record of the member that is incomplete, if one is.
func (s *site) complete() error {
	if s.incomplete == nil {
		return nil
	}
	m := s.incomplete
	if err := s.pinRecord(filepath.Join(m.dir, recordPin), memberName, m.memberRecord); err != nil {
		return err
	}
	s.reached("member record pinned")
	s.incomplete = nil
	return nil
}

// pinCode pins what the record of a member speaks of.
func (s *site) pinCode(m member, prog Program) error {
	if err := os.MkdirAll(m.pins(), 0o700); err != nil {
		return err
	}
	s.reached("member directory made")
	if err := s.pinProgram(filepath.Join(m.pins(), progPin), prog.Program); err != nil {
		return err
	}
	s.reached("member program pinned")
	for i, name := range m.Code.Maps {
		if err := s.pinMap(filepath.Join(m.pins(), mapPin+strconv.Itoa(i)), prog.Maps[name]); err != nil {
			return err
		}
		s.reached("member map pinned")
	}
	if m.Code.Alone != "" {
		return nil
	}
	code, err := m.Code.Bytes()
	if err != nil {
		return err
	}
	if err := s.pinBytes(filepath.Join(m.pins(), codePin), "bpfvol_code", code); err != nil {
		return err
	}
	s.reached("member code pinned")
	return nil
}

const memberName = "bpfvol_member"

// readCode fills in the instructions of a member.
func (m *member) readCode() error {
	if m.Code.Alone != "" || len(m.Code.Instructions) > 0 {
		return nil
	}
	b, err := pin.ReadBytes(filepath.Join(m.pins(), codePin))
	if err != nil {
		return fmt.Errorf("program %.64q: %w", m.Program, err)
	}
	if err := m.Code.SetBytes(b); err != nil {
		return fmt.Errorf("program %.64q: %w", m.Program, err)
	}
	return nil
}

// readMembers reads what is complete: a member without record is about to come or about to go.
func (s *site) readMembers() error {
	s.members = nil
	volumes, err := pin.Names(s.pin(membersDir))
	if err != nil {
		return err
	}
	for _, v := range volumes {
		programs, err := pin.Names(s.pin(membersDir, v))
		if err != nil {
			return err
		}
		for _, p := range programs {
			m := member{dir: s.pin(membersDir, v, p)}
			err := readRecord(filepath.Join(m.dir, recordPin), &m.memberRecord)
			if errors.Is(err, os.ErrNotExist) {
				continue
			} else if err != nil {
				return fmt.Errorf("%s: %w", s.Point, err)
			}
			if m.Code == nil || m.Counter < 0 || m.Counter >= maxMembers || len(m.MapIDs) != len(m.Code.Maps) {
				return fmt.Errorf("%s: record of program %.64q: malformed", s.Point, m.Program)
			}
			s.members = append(s.members, m)
		}
	}
	s.sortMembers()
	return nil
}

func (s *site) sortMembers() {
	slices.SortFunc(s.members, func(a, b member) int { return compare(a.Member, b.Member) })
}

// drop takes a volume's members out of the set: their records go. They may still run.
func (s *site) drop(volume string) error {
	programs, err := pin.Names(s.pin(membersDir, volume))
	if err != nil {
		return err
	}
	for _, p := range programs {
		if err := s.dropRecord(s.pin(membersDir, volume, p)); err != nil {
			return err
		}
	}
	s.members = slices.DeleteFunc(s.members, func(m member) bool { return m.Volume == volume })
	return nil
}

func (s *site) dropRecord(dir string) error {
	err := errors.Join(pin.Remove(filepath.Join(dir, recordPin+newSuffix)), pin.Remove(filepath.Join(dir, recordPin)))
	s.reached("member record removed")
	return err
}

// unpinMembers removes the members of a volume, which no longer run.
func (s *site) unpinMembers(volume string) error {
	programs, err := pin.Names(s.pin(membersDir, volume))
	if err != nil {
		return err
	}
	for _, p := range programs {
		if err := s.unpinMember(s.pin(membersDir, volume, p)); err != nil {
			return err
		}
	}
	return pin.Remove(s.pin(membersDir, volume))
}

// unpinMember removes a member: the record first, so that what is left of a crash is incomplete.
func (s *site) unpinMember(dir string) error {
	if err := s.dropRecord(dir); err != nil {
		return err
	}
	if err := s.sweep(member{dir: dir}); err != nil {
		return err
	}
	if err := pin.Remove(dir); err != nil {
		return err
	}
	os.Remove(filepath.Dir(dir)) // the volume's, unless it has other members here
	return nil
}

func (s *site) sweepAll() error {
	for _, m := range s.members {
		if err := s.sweep(m); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes what is pinned of a member and not of the program that it has now.
func (s *site) sweep(m member) error {
	names, err := pin.Names(m.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		dir := filepath.Join(m.dir, name)
		if strings.HasPrefix(name, recordPin) || dir == m.pins() {
			continue
		}
		pins, err := pin.Names(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		for _, name := range pins {
			if err := pin.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
			s.reached("member " + name + " removed")
		}
		if err := pin.Remove(dir); err != nil {
			return err
		}
	}
	return nil
}
