// SPDX-License-Identifier: Apache-2.0

// Package dispatcher shares a point, a hook of which the kernel runs one program, among members: XDP and TC on a network
// interface. This version lets one member on a point and refuses the second; what is below is made for more.
//
// # Aim
//
// What runs on a point is decided by pins in a bpffs alone. No process has to live for it: the daemon may be killed
// between any two of its system calls, and what it finds afterwards is either a member that runs or remains that Detach
// removes. The state dies with the programs at a reboot. It is the protocol between versions of bpfvol on one machine.
//
// # Layout
//
//	<dir>/xdp-4026532008-2/           a point: kind, for tc its direction, network namespace cookie, interface index
//	    record                        point record: interface name, carrier (xdp, tcx, clsact), XDP mode
//	    link                          the bpf_link; its program is what packets meet (carriers xdp and tcx)
//	    members/<volume>/<program>/
//	        record                    member record: volume, program, priority, proceedOn
//	        prog                      the member's own program, loaded alone
//
// A record is JSON in the one entry of a frozen array map: a bpffs holds no files, and a map can be read by bpftool.
// Records carry a version; one of another version is refused, not guessed at. Program names that are no plain words
// are hashed (volume.FileName); the record holds the name. Points are keyed by cookie and index because the kernel gives
// the inode number of a dead namespace, unlike its cookie, to a new one.
//
// The carrier clsact, for kernels before 6.6, has no link: its filter belongs to the interface and is known by its
// priority, its handle and a name that starts with "bpfvol".
//
// # Order of effects
//
// All under an exclusive flock of the point's directory, which is taken again if the directory was removed meanwhile.
//
// Attach: member's prog pinned, member's record pinned, program attached, point record pinned, link pinned. A link that is
// not pinned ends with its process, so a crash before the last step leaves nothing running. (clsact: point record pinned,
// then filter added: the filter is last.) A member without record is incomplete and does not count.
//
// Replace, when a member comes back with a newly loaded program: prog and record replaced by renames, then the link
// updated. The update is atomic: every packet meets the old program or the new one.
//
// Detach, the reverse: link detached, link unpinned, point record, member's record, member's prog, directories.
// The kernel waits for packets in flight, and so does Detach: 10 to 20 ms per point. A packet that arrives after it does
// not meet the program, and a new program may attach at once (TestDetachedProgramSeesNoPacket).
//
// # The same member
//
// A member is the same as an attached one if volume and program name are the same. If it is also the same loaded program
// with the same priority and proceedOn, Attach does nothing. Else it replaces, as above; after a restart of the daemon
// programs are loaded anew and this is what happens. Another XDP mode cannot be had by update: the member is detached first.
//
// # Invariants
//
//   - after a kill at any step, Attach succeeds and Detach leaves nothing (TestKilledAttachLeavesNothingForGood,
//     TestKilledDetachIsFinishedByTheNext);
//   - Attach of the same member changes nothing (TestAttachAgainChangesNothing), of its new program loses no packet
//     (TestNewProgramReplacesWithoutGap);
//   - a second member is refused and the first one keeps running (TestSecondMemberIsRefused);
//   - a program that is not ours is neither replaced nor removed (TestForeignXDPProgramStays, TestForeignFilterStays);
//   - Detach succeeds when interface or namespace are gone (TestDetachAfterInterfaceIsGone, TestDetachAfterNetNSIsGone);
//   - one point's members are changed by one caller at a time (TestConcurrentAttachLetsOneIn);
//   - nothing is held open: between calls this process has no BPF descriptor (every test, by bpftest.Main).
package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Dispatcher changes the members of the points below one directory. Any number of processes may use the same directory.
type Dispatcher struct {
	root string

	// classic makes it use clsact where the kernel has TCX. Tests set it.
	classic bool
	// step, if not nil, is told of every effect right after it. Tests die in it.
	step func(name string)
}

// New returns a Dispatcher that keeps its pins in a directory of a bpffs, such as /sys/fs/bpf/bpfvol/points.
// The directory is made when it is needed and removed when it is empty.
func New(dir string) *Dispatcher { return &Dispatcher{root: dir} }

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

// Attachment says how a member was attached.
type Attachment struct {
	Point Point
	// Mode is the XDP mode in use, native or generic; empty for TC.
	Mode volume.XDPMode
}

// Attach makes a member run at a point of the current network namespace. The mode is for XDP: auto is native where the
// driver can, else generic. prog stays the caller's.
//
// Errors: *FullError where another member runs, *ForeignError where a program runs that is not ours, *InterfaceError if
// the interface is gone, ebpf.ErrNotSupported if driver or kernel cannot.
func (d *Dispatcher) Attach(ctx context.Context, p Point, mode volume.XDPMode, m Member, prog *ebpf.Program) (_ Attachment, err error) {
	if err := p.check(m, prog); err != nil {
		return Attachment{}, err
	}
	s, err := d.open(ctx, p, true)
	if err != nil {
		return Attachment{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	running, alive, err := s.running()
	if err != nil {
		return Attachment{}, err
	}
	if alive {
		for _, holder := range s.members {
			if !holder.same(m) {
				return Attachment{}, &FullError{Point: p, Holder: holder.Member}
			}
		}
		if mode == "" || mode == volume.XDPAuto || mode == s.record.Mode || p.Kind != volume.KindXDP {
			return Attachment{Point: p, Mode: s.record.Mode}, s.renew(m, prog, running)
		}
	}
	// Nothing of ours runs here, or it has to give way: what is left of it goes.
	if err := s.clear(); err != nil {
		return Attachment{}, err
	}
	if err := s.start(m, prog, mode); err != nil {
		return Attachment{}, errors.Join(err, s.clear())
	}
	return Attachment{Point: p, Mode: s.record.Mode}, nil
}

// start makes the first member of an empty point run.
func (s *site) start(m Member, prog *ebpf.Program, mode volume.XDPMode) error {
	if err := s.pinMember(m, prog); err != nil {
		return err
	}
	if s.Kind == volume.KindXDP {
		return s.startXDP(prog, mode)
	}
	if !s.classic {
		err := s.startTCX(prog)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	return s.startClsact(m, prog)
}

// renew gives a running member its new program and settings.
func (s *site) renew(m Member, prog *ebpf.Program, running ebpf.ProgramID) error {
	id, err := programID(prog)
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(s.members, func(have member) bool { return have.equal(m) })
	if id == running && known {
		return nil
	}
	if err := s.pinMember(m, prog); err != nil {
		return err
	}
	if id == running {
		return nil
	}
	return s.carrier().swap(s, prog)
}

// Detach ends every member of a volume, wherever it runs. A member, an interface or a network namespace that is gone is
// as good as detached. A packet that arrives after Detach returned nil does not meet the volume's programs.
func (d *Dispatcher) Detach(ctx context.Context, volume string) error {
	if !isElement(volume) {
		return fmt.Errorf("volume %q is not a file name", volume)
	}
	points, err := d.points()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range points {
		if err := d.detach(ctx, p, volume); err != nil {
			errs = append(errs, fmt.Errorf("detach from %s: %w", p, err))
		}
	}
	d.removeEmpty()
	return errors.Join(errs...)
}

func (d *Dispatcher) detach(ctx context.Context, p Point, volume string) (err error) {
	mine, empty := d.look(p, volume)
	if !mine && !empty {
		return nil
	}
	s, err := d.open(ctx, p, false)
	if err != nil && !mine {
		return nil // what stands there is not the volume's, and must not hold it up
	}
	if s == nil || err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	others := slices.ContainsFunc(s.members, func(m member) bool { return m.Volume != volume })
	if others {
		return s.unpinMembers(volume)
	}
	return s.clear()
}

// reached tells a test which effect just happened.
func (d *Dispatcher) reached(step string) {
	if d.step != nil {
		d.step(step)
	}
}

func programID(prog *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := prog.Info()
	if err != nil {
		return 0, err
	}
	id, ok := info.ID()
	if !ok {
		return 0, fmt.Errorf("program id: %w", ebpf.ErrNotSupported)
	}
	return id, nil
}
