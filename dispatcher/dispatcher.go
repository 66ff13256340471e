// SPDX-License-Identifier: Apache-2.0

// Package dispatcher shares a point, a hook of which the kernel runs one program, among members: XDP and TC on a network
// interface. It makes one program of them (package fuse) and changes which one runs in one step.
//
// # Aim
//
// What runs on a point is decided by pins in a bpffs alone. No process has to live for it, and no cache, image or registry
// has to be there for it to change: the daemon may be killed between any two of its system calls, and whoever opens the
// point next finishes the change or undoes it. The state dies with the programs at a reboot. It is the protocol between
// versions of bpfvol on one machine; docs/dispatcher.md has the reasons.
//
// # Layout
//
//	<dir>/xdp-4026532008-2/           a point: kind, for tc its direction, network namespace cookie, interface index
//	    record                        point record: interface name, carrier (xdp, tcx, clsact), XDP mode
//	    link                          the bpf_link; its program is what packets meet (carriers xdp and tcx)
//	    set                           what that program is made of: members in order, and the way each went
//	    slots                         the program array of members that are tail-called
//	    counters                      with Options.MemberStats: what members returned
//	    next-set, next-slots          of the program that is about to run
//	    members/<volume>/<program>/
//	        record                    member record: volume, program, priority, proceedOn, all of fuse.Code but instructions
//	        <id>/                     the program that it has now, by its id
//	            prog                  it, loaded alone
//	            code                  its instructions
//	            map0, map1, ...       its maps
//
// A record is JSON in the one entry of a frozen array map: a bpffs holds no files, and a map can be read by bpftool.
// Records carry a version; one of another version is refused, not guessed at. Program names that are no plain words
// are hashed (volume.FileName); the record holds the name. Points are keyed by cookie and index because the kernel gives
// the inode number of a dead namespace, unlike its cookie, to a new one.
//
// The members with a record are what shall run; the program on the link is what does. The carrier clsact, for kernels
// before 6.6, has no link: its filter belongs to the interface and is known by its priority, its handle and its name.
//
// # Order of effects
//
// All under an exclusive flock of the point's directory, which is taken again if the directory was removed meanwhile.
//
// Attach: the member's program, maps and code pinned; then the change below.
// Detach: the member's record removed; the change; then the rest of its pins.
// A change, from what runs to what the records say:
//
//  1. the program of all members is built and loaded, aside; if that works, the record of the member that attaches is pinned;
//  2. its program array is pinned as next-slots, its set as next-set;
//  3. the link is updated if it still has the old program, or made where there is none: point record pinned, link pinned.
//     (clsact: filter replaced, or point record pinned and filter added);
//  4. where the old program may tail-call, packets that still meet it are waited for;
//  5. next-slots and next-set replace slots and set, by renames.
//
// A crash before 3 leaves what ran, after 3 what shall run: which of the two it was, the id of the link's program says to
// whoever opens the point. A link that is not pinned ends with its process. When the last member goes, the reverse: link
// detached, link unpinned, point record, sets, members, directories.
//
// # The same member
//
// A member is the same as an attached one if volume and program name are the same. If it is also the same loaded program
// with the same priority and proceedOn, Attach does nothing. Else it is replaced in one change. Another XDP mode cannot be
// had by update: a lone member is detached first, others are not.
//
// # Invariants
//
//   - a change loses no packet, and none meets a set that was not (TestChangeLosesNoPacketAndNoneMeetsAWrongSet), nor one whose
//     program arrays are gone (TestPacketOnItsWayFindsItsSlots, TestPacketOnItsWayFindsWhatItsMemberCalls);
//   - after a kill at any effect, whoever comes next finishes the change or takes it back, and nothing is left
//     (TestKilledChangeLosesNoPacketAndIsFinishedByTheNext, TestKilledAttachLeavesNothingForGood,
//     TestKilledDetachIsFinishedByTheNext, TestKilledAttachOfOneTooManyHoldsUpNobody), from pins alone
//     (TestPointIsRebuiltFromItsPins);
//   - the same set is the same program, whoever attaches it in whatever order (TestSameSetIsTheSameProgram); proceedOn
//     decides who runs (TestProceedOnDecidesWhoRunsAndWhatResults);
//   - an Attach that fails changes nothing (TestFullPointStaysAsItIs, TestProgramThatTheDriverRefusesChangesNothing,
//     TestModeThatTheDriverLacksChangesNothing, TestMembersShareTheMode);
//   - a lost race starts over (TestLostRaceStartsOver), ten times (TestRaceThatIsAlwaysLostIsAnError), and what has ended is
//     started by Attach and Repair alone (TestWhatEndsDuringAChangeIsStartedAgainOrLeftAlone);
//   - what others took away is brought back (TestRepairMakesEveryMemberRunAgain), at no other interface
//     (TestRepairTouchesNoOtherInterface) and in nobody's place (TestRepairLeavesAForeignProgram);
//   - Attach of the same member changes nothing (TestAttachAgainChangesNothing), of its new program loses no packet
//     (TestNewProgramReplacesWithoutGap);
//   - members of every kind do beside others what they do alone (TestMembersOfEveryKindShareAPoint); later ones see what
//     earlier ones made of the packet (TestLaterMembersSeeTheChangedPacket);
//   - what is too much for one program gets slots, and no more than that (TestMembersWithTooManyMapsGetSlots,
//     TestMembersWithTooManyFunctionsGetSlots, TestCostlyMembersGetSlots, TestMemberThatTheVerifierRefusesFusedGetsASlot,
//     TestFragmentsNeedEveryMember, TestLicensesAreNotMixed);
//   - a program that is not ours is neither replaced nor removed (TestForeignXDPProgramStays, TestForeignFilterStays);
//   - Detach succeeds when interface or namespace are gone (TestDetachAfterInterfaceIsGone, TestDetachAfterNetNSIsGone,
//     TestMembersLeaveAfterTheirInterfaceIsGone), and an interface that moved keeps its members
//     (TestMovedInterfaceTakesItsMembersAlong);
//   - a point that counts goes on with it whoever changes its members (TestPointCountsOnWhoeverChangesIt);
//   - an interface is found by the name that it has now (TestLocateFindsTheNameOfNow), and no thread stays where it looked
//     (TestNoThreadStaysInANetNSThatItLookedInto);
//   - one point's members are changed by one caller at a time (TestProcessesThatChangeAPointAtOnceLeaveTheSet), and its
//     interface's qdisc, too (TestQdiscStaysForWhoComesFromTheOtherDirection);
//   - nothing is held open: between calls this process has no BPF descriptor (every test, by bpftest.Main).
package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/host"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Dispatcher changes the members of the points below one directory. Any number of processes may use the same directory.
type Dispatcher struct {
	root    string
	options Options
	types   *btf.Cache

	namespaces namespaces

	// classic makes it use clsact where the kernel has TCX. Tests set it.
	classic bool
	// step, if not nil, is told of every effect right after it. Tests die in it.
	step func(name string)
}

// Options configures a Dispatcher.
type Options struct {
	// Types keeps the kernel's BTF between calls: one for the process. Nil reads it anew.
	Types *btf.Cache
	// MemberStats makes Attach count what every member of the point returns: MemberStatus.Counts. A point that counts goes
	// on with it whoever changes it later, until Recover of a Dispatcher without MemberStats: the node plugin decides that
	// for the node, and a command that detaches one member must not decide it for the others.
	MemberStats bool
	// LibXDP runs XDP members by libxdp's protocol on every interface, not only on those that have its dispatcher already.
	LibXDP bool
	// Host is where the interfaces are; empty: where this process is. Methods are to be called there, by Host.Do.
	Host host.Process
	// LibXDPDir is where libxdp keeps its pins; empty: its default, /sys/fs/bpf/xdp.
	LibXDPDir string
}

// New returns a Dispatcher that keeps its pins in a directory of a bpffs, such as /sys/fs/bpf/bpfvol/points.
// The directory is made when it is needed and removed when it is empty.
func New(dir string, o Options) *Dispatcher {
	d := &Dispatcher{root: dir, options: o, types: o.Types, namespaces: namespaces{host: o.Host}}
	if d.types == nil {
		d.types = btf.NewCache()
	}
	return d
}

// Attachment says how a member was attached.
type Attachment struct {
	Point Point
	// Mode is the XDP mode in use, native or generic; empty for TC.
	Mode volume.XDPMode
	// Way is how the member runs, and Why it has a slot if it has one. The next change of membership may change both.
	Way Way
	Why string
}

// Attach makes a member run at a point of the current network namespace, in its order among those that are there. The
// mode is for XDP: auto is the point's, or native where the driver can, else generic. prog stays the caller's.
//
// Errors: *FullError where no place is left, *ForeignError where a program runs that is not ours, *InterfaceError if
// the interface is gone, *ModeError, ebpf.ErrNotSupported if driver or kernel cannot. After an error everything is as
// it was.
func (d *Dispatcher) Attach(ctx context.Context, p Point, mode volume.XDPMode, m Member, prog Program) (_ Attachment, err error) {
	if err := p.check(m, prog.Program); err != nil {
		return Attachment{}, err
	}
	own, err := programID(prog.Program)
	if err != nil {
		return Attachment{}, err
	}
	s, err := d.open(ctx, p, true)
	if err != nil {
		return Attachment{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	was, err := s.admit(m, mode)
	if err != nil {
		return Attachment{}, err
	}
	s.joining, s.counted = m, s.options.MemberStats || s.set.Counted
	undo := func() error { return nil }
	if !slices.ContainsFunc(s.members, func(have member) bool { return have.equal(m) && have.Own == own }) {
		if undo, err = s.pinMember(m, prog); err != nil {
			return Attachment{}, errors.Join(err, s.restore(ctx, was))
		}
	}
	if err := s.reconcile(ctx, mode, start); errors.Is(err, errUnfinished) {
		return Attachment{}, err // the member runs: Detach must find it
	} else if err != nil {
		return Attachment{}, errors.Join(err, s.endComponent(ctx, m, own), undo(), s.restore(ctx, was))
	}
	at := Attachment{Point: p, Mode: s.record.Mode}
	if s.record.Carrier == carrierLibxdp {
		at.Way = LibXDP
		return at, s.sweepAll()
	}
	for i, placed := range s.set.Members {
		if placed.same(m) {
			at.Way, at.Why = placed.Way, placed.Why
			err = s.sweep(s.members[i]) // what it ran before, and what a crash left
		}
	}
	return at, err
}

// admit takes away what is left of a point that is dead, and refuses a mode that the point cannot have. A lone member's
// mode can be another, but not at the same time: it is ended, and was is the mode that it had.
func (s *site) admit(m Member, mode volume.XDPMode) (was volume.XDPMode, err error) {
	_, alive, err := s.running()
	if err != nil {
		return "", err
	}
	if !alive {
		return "", s.clear()
	}
	if moved, err := s.hasMoved(); err != nil {
		return "", err
	} else if moved {
		why := "the interface that had its number moved to another network namespace, where other programs go on by this point"
		return "", &FullError{Point: s.Point, Member: m, Why: why}
	}
	if s.Kind != volume.KindXDP || mode == "" || mode == volume.XDPAuto || mode == s.record.Mode {
		return "", nil
	}
	for _, other := range s.members {
		if !other.same(m) {
			return "", &ModeError{Point: s.Point, Has: s.record.Mode, Wants: mode, Holder: other.Member}
		}
	}
	was = s.record.Mode
	return was, s.stop()
}

// restore follows an Attach that failed and was undone: what was ended for it runs again, in the mode that it had.
func (s *site) restore(ctx context.Context, was volume.XDPMode) error {
	s.incomplete = nil
	if err := s.readMembers(); err != nil {
		return err
	}
	if len(s.members) == 0 {
		return s.clear()
	}
	if was == "" {
		return nil
	}
	return s.reconcile(ctx, was, start)
}

// Detach ends every member of a volume, wherever it runs. A member, an interface or a network namespace that is gone is
// as good as detached. A packet that arrives after Detach returned nil does not meet the volume's programs.
func (d *Dispatcher) Detach(ctx context.Context, volume string) error {
	if !isElement(volume) {
		return fmt.Errorf("volume %q is not a file name", volume)
	}
	points, err := d.Points()
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
	mine, empty, err := d.look(p, volume)
	if err != nil || !mine && !empty {
		return err
	}
	s, err := d.open(ctx, p, false)
	if err != nil && !mine {
		return nil // what stands there is not the volume's, and must not hold it up
	}
	if s == nil || err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.drop(volume); err != nil {
		return err
	}
	if len(s.members) == 0 {
		return s.clear()
	}
	if s.record.Carrier == carrierLibxdp {
		if err := s.removeComponents(ctx, volume); err != nil {
			return err
		}
	} else if err := s.reconcile(ctx, "", leaveItSo); err != nil {
		return err
	}
	return s.unpinMembers(volume)
}

// Recover finishes every change that a crash cut short: what runs is then what the members say, and counts what Options
// say. It goes on past points that it cannot read.
func (d *Dispatcher) Recover(ctx context.Context) error {
	points, err := d.Points()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range points {
		if err := d.recover(ctx, p); err != nil {
			errs = append(errs, fmt.Errorf("recover %s: %w", p, err))
		}
	}
	d.removeEmpty()
	return errors.Join(errs...)
}

func (d *Dispatcher) recover(ctx context.Context, p Point) (err error) {
	s, err := d.open(ctx, p, false)
	if s == nil || err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if len(s.members) == 0 {
		return s.clear()
	}
	s.counted = s.options.MemberStats
	if err := s.reconcile(ctx, "", leaveItSo); err != nil {
		return err
	}
	return s.sweepAll()
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
