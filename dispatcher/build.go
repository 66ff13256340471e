// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/dispatcher/fuse"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// built is a program that is ready to run at a point. The caller must close it.
type built struct {
	prog  *ebpf.Program
	slots *ebpf.Map // nil: no member has a slot
	set   setRecord
}

func (b *built) close() {
	b.prog.Close()
	if b.slots != nil {
		b.slots.Close()
	}
}

// build makes one program of the members of the point, from their pins alone.
func (s *site) build() (*built, error) {
	run := s.thatRun()
	if m := run[0]; len(run) == 1 && !s.counted && isNeutral(s.Kind, m.ProceedOn) {
		if err := m.readCode(); err != nil {
			return nil, err
		}
		prog, err := ebpf.LoadPinnedProgram(filepath.Join(m.pins(), progPin), nil)
		if err != nil {
			return nil, fmt.Errorf("program %.64q: %w", m.Program, err)
		}
		set := setRecord{
			Version: recordVersion, Program: m.Own, Members: []placed{{Member: m.Member, Own: m.Own, Way: Plain}},
			Calls: m.Code.Alone != "" || m.Code.Shape().TailCalls,
		}
		set.addIdle(s.members[1:])
		return &built{prog: prog, set: set}, nil
	}
	candidates := make([]fuse.Candidate, len(run))
	for i := range run {
		m := &run[i]
		if err := m.readCode(); err != nil {
			return nil, err
		}
		candidates[i] = fuse.Candidate{Code: m.Code, MapIDs: m.MapIDs, Verified: m.Verified}
	}
	l, err := s.newLoading(run)
	if err != nil {
		return nil, err
	}
	defer l.close()
	for {
		why := fuse.Plan(candidates, l.plan)
		b, err := l.load(why)
		if !isRejection(err) {
			return b, err
		}
		if !l.refuse(candidates, why) {
			return nil, fmt.Errorf("%s: the verifier refuses the program of all members, even with a slot for each: %w", s.Point, err)
		}
	}
}

// thatRun returns the members that can run: those after one that never proceeds cannot.
func (s *site) thatRun() []member {
	for i, m := range s.members {
		if len(proceed(s.Kind, m.ProceedOn)) == 0 {
			return s.members[:i+1]
		}
	}
	return s.members
}

// isNeutral reports whether a member's own result is the result of a set of it alone: where it proceeds, the result is
// the one that it returned.
func isNeutral(kind volume.Kind, proceedOn []volume.Verdict) bool {
	if kind == volume.KindXDP {
		return slices.Equal(proceedOn, []volume.Verdict{"pass"}) || len(proceedOn) == 0
	}
	return slices.Equal(proceedOn, []volume.Verdict{"unspec"}) || len(proceedOn) == 0
}

// loading holds the maps that a program is made with, by their ids.
type loading struct {
	*site
	run      []member
	plan     fuse.PlanOptions
	maps     map[ebpf.MapID]*ebpf.Map
	counters *ebpf.Map
}

func (s *site) newLoading(run []member) (*loading, error) {
	l := &loading{site: s, run: run, maps: map[ebpf.MapID]*ebpf.Map{}}
	l.plan.LongJumps = l.needLongJumps() && longJumps()
	if s.counted {
		var err error
		if l.counters, err = s.openCounters(); err != nil {
			return nil, err
		}
		l.plan.Counted = true
	}
	return l, nil
}

func (l *loading) close() {
	for _, m := range l.maps {
		m.Close()
	}
	if l.counters != nil {
		l.counters.Close()
	}
}

// load makes the program in which the members with a reason have a slot. The error is the kernel's.
func (l *loading) load(why []string) (_ *built, err error) {
	set := l.fuseSet()
	record := setRecord{Version: recordVersion, Counted: l.counted}
	var slotted []member
	for i, m := range l.run {
		fm := fuse.Member{Code: m.Code, Proceed: proceed(l.Kind, m.ProceedOn), Slot: fuse.Fused, Counter: m.Counter}
		place := placed{Member: m.Member, Own: m.Own, Way: Fused, Why: why[i]}
		if why[i] != "" {
			if len(slotted) == fuse.MaxSlots {
				return nil, l.noSlot(why)
			}
			fm.Slot, place.Way = len(slotted), Slot
			slotted = append(slotted, m)
		} else if fm.Descriptors, err = l.descriptors(m); err != nil {
			return nil, err
		}
		set.Members = append(set.Members, fm)
		record.Members = append(record.Members, place)
	}
	b := &built{}
	if len(slotted) > 0 {
		if b.slots, err = l.fillSlots(slotted, set.Flags()); err != nil {
			return nil, err
		}
		set.Slots, record.Slots, record.Calls = b.slots.FD(), true, true
	}
	defer func() {
		if err != nil && b.slots != nil {
			b.slots.Close()
		}
	}()
	spec, err := set.Program()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.Point, err)
	}
	if b.prog, err = loadSpec(spec); err != nil {
		return nil, fmt.Errorf("%s: load the program of all members: %w", l.Point, err)
	}
	if record.Program, err = programID(b.prog); err != nil {
		b.prog.Close()
		return nil, err
	}
	record.addIdle(l.members[len(l.run):])
	b.set = record
	return b, nil
}

// noSlot says, to whom attaches, that more members need a slot than there are. It need not be the one: its arrival may be
// why another can no longer be fused.
func (l *loading) noSlot(why []string) error {
	e := &FullError{Point: l.Point, Member: l.joining, Why: fmt.Sprintf("more than %d programs there would need a slot", fuse.MaxSlots)}
	for i, m := range l.run {
		if why[i] != "" && m.same(l.joining) {
			e.Why = fmt.Sprintf("it needs a slot, since %s, and all %d are taken", why[i], fuse.MaxSlots)
		}
	}
	return e
}

// fuseSet is the set of the point, still without members.
func (l *loading) fuseSet() fuse.Set {
	set := fuse.Set{Type: ebpf.XDP, Name: "bpfvol_xdp", Done: 2, Failed: 0, LongJumps: l.plan.LongJumps} // XDP_PASS, XDP_ABORTED
	if l.Kind == volume.KindTC {
		set.Type, set.Name, set.Done, set.Failed = ebpf.SchedCLS, "bpfvol_tc_"+string(l.Direction)[:2], -1, 2 // TC_ACT_UNSPEC, TC_ACT_SHOT
	}
	if l.counters != nil {
		set.Stats = l.counters.FD()
	}
	return set
}

// proceed returns the numbers of verdicts. TC goes on after unspec, whatever was asked: it means "not for me to say".
func proceed(kind volume.Kind, proceedOn []volume.Verdict) (codes []int32) {
	if kind == volume.KindTC {
		proceedOn = append(slices.Clone(proceedOn), "unspec")
	}
	for _, v := range proceedOn {
		if code := int32(verdicts(kind)[v]); !slices.Contains(codes, code) {
			codes = append(codes, code)
		}
	}
	return codes
}

// descriptors opens the maps of a member, by their ids, which is quicker than by pins: those keep the maps alive.
func (l *loading) descriptors(m member) ([]int, error) {
	fds := make([]int, len(m.MapIDs))
	for i, id := range m.MapIDs {
		if l.maps[id] == nil {
			opened, err := ebpf.NewMapFromID(id)
			if err != nil {
				return nil, fmt.Errorf("map %.64q: %w", m.Code.Maps[i], err)
			}
			l.maps[id] = opened
		}
		fds[i] = l.maps[id].FD()
	}
	return fds, nil
}

// fillSlots makes the program array of members that are tail-called.
func (l *loading) fillSlots(members []member, flags uint32) (_ *ebpf.Map, err error) {
	slots, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "bpfvol_slots", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: uint32(len(members)),
	})
	if err != nil {
		return nil, fmt.Errorf("%s: slots: %w", l.Point, err)
	}
	defer func() {
		if err != nil {
			slots.Close()
		}
	}()
	for i, m := range members {
		if err := l.fillSlot(slots, i, m, flags); err != nil {
			return nil, fmt.Errorf("%s: slot of program %.64q: %w", l.Point, m.Program, err)
		}
	}
	return slots, slots.Freeze()
}

// fillSlot puts the member's own program into its slot; or the same, loaded for packets without fragments, where other
// members cannot take those: all programs of an array have to agree on that.
func (l *loading) fillSlot(slots *ebpf.Map, i int, m member, flags uint32) error {
	frags := m.Code.HasFrags() && flags&unix.BPF_F_XDP_HAS_FRAGS == 0
	prog, err := l.slotProgram(m, frags)
	if err == nil {
		defer prog.Close()
		err = slots.Put(uint32(i), prog)
	}
	if !isRejection(err) {
		return err
	}
	// The program is fine alone, so this is no rejection that another plan could avoid.
	why := "it cannot be tail-called"
	if frags {
		why = "it takes packets in fragments, others here do not, and it cannot be loaded without"
	}
	return fmt.Errorf("%s (%v), %w beside others; use another interface", why, rejection(err), ebpf.ErrNotSupported)
}

func (l *loading) slotProgram(m member, withoutFrags bool) (*ebpf.Program, error) {
	if !withoutFrags {
		return ebpf.LoadPinnedProgram(filepath.Join(m.pins(), progPin), nil)
	}
	if m.Code.Alone != "" {
		return nil, unix.EINVAL
	}
	fds, err := l.descriptors(m)
	if err != nil {
		return nil, err
	}
	spec := m.Code.Spec(fds)
	spec.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	return loadSpec(spec)
}

// refuse finds the members for whose sake the verifier refused a program, and reports whether there are any that were
// fused: those that it does not take fused even alone, or else the one that is most work.
func (l *loading) refuse(candidates []fuse.Candidate, why []string) (found bool) {
	most, frame := -1, 0
	for i := range candidates {
		if why[i] == "" {
			frame = max(frame, candidates[i].Shape().Frame)
		}
	}
	for i := range candidates {
		if why[i] != "" {
			continue
		}
		if err := l.tryFused(i, frame); isRejection(err) {
			candidates[i].Refused, found = fmt.Sprintf("the verifier takes it alone, but not fused (%v)", rejection(err)), true
		}
		if most < 0 || candidates[i].Verified > candidates[most].Verified {
			most = i
		}
	}
	if !found && most >= 0 {
		candidates[most].Refused, found = "the verifier takes it alone, but not together with the others", true
	}
	return found
}

// tryFused loads a set of one fused member and one that needs no more than the context, which stands where it does for
// all members.
func (l *loading) tryFused(i, frame int) error {
	m := l.run[i]
	fds, err := l.descriptors(m)
	if err != nil {
		return err
	}
	set := l.fuseSet()
	set.Frame = frame
	witness, err := fuse.Settle(&ebpf.ProgramSpec{Name: "witness", Type: set.Type, License: m.Code.License, Instructions: asm.Instructions{
		asm.LoadMem(asm.R0, asm.R1, 0, asm.Word).WithSymbol("witness"), // data of xdp_md, len of __sk_buff
		asm.Return(),
	}}, l.types)
	if err != nil {
		return err
	}
	set.Members = []fuse.Member{
		{Code: m.Code, Descriptors: fds, Proceed: proceed(l.Kind, m.ProceedOn), Slot: fuse.Fused, Counter: m.Counter},
		{Code: witness, Slot: fuse.Fused, Counter: m.Counter},
	}
	if len(set.Members[0].Proceed) == 0 {
		set.Members = set.Members[:1]
	}
	spec, err := set.Program()
	if err != nil {
		return err
	}
	prog, err := loadSpec(spec)
	if err != nil {
		return err
	}
	return prog.Close()
}

// needLongJumps reports whether a member is longer than an ordinary jump spans.
func (l *loading) needLongJumps() bool {
	return slices.ContainsFunc(l.run, func(m member) bool { return m.Code.Instructions.Size()/asm.InstructionSize > math.MaxInt16 })
}

// longJumps asks the kernel whether it has jumps with a distance of 32 bits: Linux 6.6 and later do.
var longJumps = sync.OnceValue(func() bool {
	prog, err := loadSpec(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 0), asm.LongJump("out"), asm.Return().WithSymbol("out"),
	}})
	if err != nil {
		return false
	}
	return prog.Close() == nil
})

// loadSpec loads without a log: what a program is rejected for was told when it was loaded alone.
func loadSpec(spec *ebpf.ProgramSpec) (*ebpf.Program, error) {
	return ebpf.NewProgramWithOptions(spec, ebpf.ProgramOptions{LogDisabled: true})
}

// rejections are what the verifier says of a program that it does not take.
var rejections = []unix.Errno{unix.EINVAL, unix.EACCES, unix.E2BIG, unix.EFAULT, unix.ENOTSUP, unix.Errno(524)} // ENOTSUPP

func isRejection(err error) bool { return rejection(err) != nil }

func rejection(err error) error {
	for _, errno := range rejections {
		if errors.Is(err, errno) {
			return errno
		}
	}
	return nil
}
