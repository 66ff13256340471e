// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// trace loads a component that appends a digit to the number in a map.
func (w *world) trace(t testing.TB, name string, numbers *ebpf.Map, digit int32) program {
	t.Helper()
	return load1(t, &ebpf.ProgramSpec{Name: name, Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, numbers.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Mul.Imm(asm.R1, 10),
		asm.Add.Imm(asm.R1, digit),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, pass).WithSymbol("out"),
		asm.Return(),
	}}, numbers)
}

func TestComponentsRunByPriority(t *testing.T) {
	w := newWorld(t)
	numbers := newCounter(t)
	var all []program
	// Of equal priority are 4 and 5; their names decide.
	for _, c := range []struct {
		digit    int32
		priority uint32
	}{{5, 50}, {1, 3}, {9, 1 << 31}, {4, 50}, {2, 4}} {
		p := w.trace(t, fmt.Sprint("digit", c.digit), numbers, c.digit)
		w.mustAdd(t, p, Options{Run: Run{Priority: c.priority, ProceedOn: onPass}})
		all = append(all, p)
	}
	w.send(t, 1)
	var got uint64
	for end := time.Now().Add(2 * time.Second); got == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		got = all[0].now(t)
	}
	if got != 12459 {
		t.Errorf("the components ran in the order %d, want 12459", got)
	}
	if got, want := w.running(t), "digit1 digit2 digit4 digit5 digit9"; got != want {
		t.Errorf("components are %q, want %q", got, want)
	}
	if err := w.ping(); err != nil {
		t.Error(err)
	}
	for _, p := range all {
		w.mustRemove(t, p.id)
	}
}

func TestDropStopsLaterComponents(t *testing.T) {
	w := newWorld(t)
	early, dropper, late := w.program(t, "early", pass), w.program(t, "dropper", drop), w.program(t, "late", pass)
	w.mustAdd(t, late, Options{Run: Run{Priority: 30, ProceedOn: onPass}})
	w.mustAdd(t, dropper, Options{Run: Run{Priority: 20, ProceedOn: onPass}})
	w.mustAdd(t, early, Options{Run: Run{Priority: 10, ProceedOn: onPass}})
	w.meets(t, "the early one", early)
	w.meets(t, "the dropper", dropper)
	w.missed(t, "the late one", late, early, dropper)
	if err := w.ping(); err == nil {
		t.Error("packets got by the dropper")
	}

	// The same with "go on after drop": then the last verdict of a chain call action lets the packet pass.
	w.mustAdd(t, dropper, Options{Run: Run{Priority: 20, ProceedOn: onDrop}})
	w.meets(t, "the late one", late)
	w.mustRemove(t, late.id)
	if err := w.ping(); err != nil {
		t.Errorf("the last component's chain call action: %v", err)
	}

	// Alone, its verdict is the packet's, as in libxdp.
	w.mustRemove(t, early.id)
	w.meets(t, "the dropper", dropper)
	if err := w.ping(); err == nil {
		t.Error("packets got by the dropper that is alone")
	}
	w.mustRemove(t, dropper.id)
	if err := w.ping(); err != nil {
		t.Error(err)
	}
}

func TestAddAgainChangesNothing(t *testing.T) {
	w := newWorld(t)
	p, other := w.program(t, "mine", pass), w.program(t, "other", pass)
	o := Options{Run: Run{Priority: 10, ProceedOn: onPass}}
	w.mustAdd(t, p, o)
	w.mustAdd(t, other, o)
	before := w.mustRead(t)
	w.mustAdd(t, p, o)
	w.mustRemove(t, 1<<30)
	if diff := cmp.Diff(before, w.mustRead(t)); diff != "" {
		t.Errorf("dispatcher changed (-before +after):\n%s", diff)
	}
	o.Priority, o.Frags = 20, true
	w.mustAdd(t, p, o)
	want := &Dispatcher{Mode: volume.XDPNative, Version: 2, Components: []Component{
		{ID: other.id, Name: "other", Run: Run{Priority: 10, ProceedOn: onPass}},
		{ID: p.id, Name: "mine", Run: Run{Priority: 20, ProceedOn: onPass, Frags: true}},
	}}
	got := w.mustRead(t)
	want.ID = got.ID
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("dispatcher with other settings (-want +got):\n%s", diff)
	}
	w.meets(t, "the component", p)
	w.mustRemove(t, p.id, other.id)
}

// What a restarted daemon does: a program that was loaded anew takes the place of the old one.
func TestReplacementTakesThePlaceInOneStep(t *testing.T) {
	w := newWorld(t)
	old, fresh, other := w.program(t, "old", pass), w.program(t, "fresh", pass), w.program(t, "other", pass)
	o := Options{Run: Run{Priority: 10, ProceedOn: onPass}}
	w.mustAdd(t, other, Options{Run: Run{Priority: 20, ProceedOn: onPass}})
	w.mustAdd(t, old, o)
	o.Replaces = old.id
	w.mustAdd(t, fresh, o)
	if got, want := w.running(t), "fresh other"; got != want {
		t.Errorf("components are %q, want %q", got, want)
	}
	w.meets(t, "the fresh one", fresh)
	w.missed(t, "the old one", old, fresh, other)
	w.mustAdd(t, fresh, o) // what it replaces is gone
	w.mustRemove(t, fresh.id, other.id)
}

func TestEleventhComponentIsRefused(t *testing.T) {
	w := newWorld(t)
	var all []program
	for i := range maxSlots {
		p := w.program(t, fmt.Sprint("number", i), pass)
		w.mustAdd(t, p, Options{Run: Run{Priority: uint32(100 - i), ProceedOn: onPass}})
		all = append(all, p)
	}
	if err := w.add(t, w.program(t, "one_too_many", pass), Options{}); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "(10 of 10 used)") {
		t.Errorf("error is %v, want ErrFull", err)
	}
	for _, p := range all {
		w.meets(t, fmt.Sprintf("program %d", p.id), p)
	}
	// One that takes the place of another has room.
	fresh := w.program(t, "fresh", pass)
	w.mustAdd(t, fresh, Options{Run: Run{ProceedOn: onPass}, Replaces: all[3].id})
	w.meets(t, "the fresh one", fresh)
	for _, p := range append(all, fresh) {
		w.mustRemove(t, p.id)
	}
}

func TestModeIsKept(t *testing.T) {
	for _, c := range []struct{ first, runs, other volume.XDPMode }{
		{volume.XDPAuto, volume.XDPNative, volume.XDPGeneric},
		{volume.XDPNative, volume.XDPNative, volume.XDPGeneric},
		{volume.XDPGeneric, volume.XDPGeneric, volume.XDPNative},
	} {
		t.Run(string(c.first), func(t *testing.T) {
			w := newWorld(t)
			first, second := w.program(t, "first", pass), w.program(t, "second", pass)
			w.mustAdd(t, first, Options{Run: Run{ProceedOn: onPass}, Mode: c.first})
			if at := w.attached(t); at.mode != c.runs {
				t.Errorf("kernel says %q, want %q", at.mode, c.runs)
			}
			if err := w.add(t, second, Options{Mode: c.other}); !errors.Is(err, ErrMode) {
				t.Errorf("other mode: %v, want ErrMode", err)
			}
			for _, mode := range []volume.XDPMode{c.runs, volume.XDPAuto, ""} {
				w.mustAdd(t, second, Options{Run: Run{ProceedOn: onPass}, Mode: mode})
				w.meets(t, "the first", first)
				w.meets(t, "the second", second)
				w.mustRemove(t, second.id)
				if d := w.mustRead(t); d.Mode != c.runs {
					t.Errorf("mode is %q, want %q", d.Mode, c.runs)
				}
			}
			w.mustRemove(t, first.id)
		})
	}
}

// The loopback driver has no native XDP.
func TestDriverWithoutNativeXDPRunsGeneric(t *testing.T) {
	w := newWorld(t)
	w.ifindex = w.here.Index(t, "lo")
	p := w.program(t, "count", pass)
	err := w.add(t, p, Options{Mode: volume.XDPNative})
	if !errors.Is(err, ebpf.ErrNotSupported) || !strings.Contains(err.Error(), "native mode: not supported by the interface's driver") {
		t.Errorf("native: %v, want not supported", err)
	}
	w.nothingLeft(t)
	w.mustAdd(t, p, Options{})
	if d := w.mustRead(t); d.Mode != volume.XDPGeneric {
		t.Errorf("mode is %q, want generic", d.Mode)
	}
	w.mustRemove(t, p.id)
}

// An interface with a large MTU takes only dispatchers with frags, so the kernel tells whether ours has.
func TestFragsNeedEveryComponent(t *testing.T) {
	w := newWorld(t)
	for _, ns := range []*world{w, {here: w.there}} {
		err := ns.here.Do(func() error {
			l, err := netlink.LinkByName("veth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, 9000)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	with, too, without := w.program(t, "with", pass), w.program(t, "too", pass), w.program(t, "without", pass)
	err := w.add(t, without, Options{Run: Run{ProceedOn: onPass}, Mode: volume.XDPNative})
	if err == nil || !strings.Contains(err.Error(), `with a large MTU every component must have frags, and these have not: "without"`) {
		t.Errorf("a lone component without frags: %v", err)
	}
	w.nothingLeft(t)
	w.mustAdd(t, with, Options{Run: Run{ProceedOn: onPass, Frags: true}, Mode: volume.XDPNative})
	w.mustAdd(t, too, Options{Run: Run{ProceedOn: onPass, Frags: true}, Mode: volume.XDPNative})
	if err := w.add(t, without, Options{Run: Run{ProceedOn: onPass}}); err == nil {
		t.Error("a component without frags joined those with")
	}
	w.meets(t, "one with frags", with)
	w.meets(t, "another with frags", too)
	w.mustRemove(t, with.id, too.id)
}

// shifter loads a component that moves the packet's begin to and fro.
func (w *world) shifter(t testing.TB, name string) program {
	t.Helper()
	packets := newCounter(t)
	return load1(t, &ebpf.ProgramSpec{Name: name, Type: ebpf.XDP, License: "GPL", Instructions: append(count(packets.FD()),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, -4), asm.FnXdpAdjustHead.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 4), asm.FnXdpAdjustHead.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R0, pass).WithSymbol("out"),
		asm.Return(),
	)}, packets)
}

// A component may change the packet: the slot it replaces must say so, on kernels that look.
func TestComponentsChangePackets(t *testing.T) {
	w := newWorld(t)
	shift := w.shifter(t, "shift")
	other := w.program(t, "other", pass)
	w.mustAdd(t, shift, Options{Run: Run{Priority: 10, ProceedOn: onPass}})
	w.meets(t, "the one that changes packets, alone", shift)
	w.mustAdd(t, other, Options{Run: Run{Priority: 20, ProceedOn: onPass}})
	w.meets(t, "the one that changes packets", shift)
	w.meets(t, "the one behind it", other)
	if err := w.ping(); err != nil {
		t.Error(err)
	}
	w.mustRemove(t, other.id)
	w.meets(t, "the one that changes packets, alone again", shift)
	w.mustRemove(t, shift.id)
}

// One program, several interfaces: a volume may name them all.
func TestProgramRunsOnSeveralInterfaces(t *testing.T) {
	w := newWorld(t)
	w.here.Veth(t, "x0", "x1")
	p := w.program(t, "count", pass)
	veth0, x0 := w.ifindex, w.here.Index(t, "x0")
	w.mustAdd(t, p, Options{Run: Run{ProceedOn: onPass}})
	w.ifindex = x0
	w.mustAdd(t, p, Options{Run: Run{ProceedOn: onPass}})
	w.mustRemove(t, p.id)
	w.nothingRuns(t)
	w.ifindex = veth0
	w.meets(t, "the program", p)
	w.mustRemove(t, p.id)
}

func (w *world) nothingRuns(t testing.TB) {
	t.Helper()
	if at := w.attached(t); at.id != 0 {
		t.Errorf("program %d runs", at.id)
	}
}

func TestRemoveAfterInterfaceIsGone(t *testing.T) {
	w := newWorld(t)
	w.here.Veth(t, "x0", "x1")
	w.ifindex = w.here.Index(t, "x0")
	mine, theirs := w.program(t, "mine", pass), w.program(t, "theirs", pass)
	w.mustAdd(t, mine, Options{Run: Run{ProceedOn: onPass}})
	w.mustAdd(t, theirs, Options{Run: Run{ProceedOn: onPass}})
	err := w.here.Do(func() error {
		l, err := netlink.LinkByName("x0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.add(t, mine, Options{}); !errors.Is(err, ErrNoInterface) {
		t.Errorf("add: %v, want ErrNoInterface", err)
	}
	if _, err := w.read(t); !errors.Is(err, ErrNoInterface) {
		t.Errorf("read: %v, want ErrNoInterface", err)
	}
	w.mustRemove(t, mine.id)
	if left := w.pins(t); len(left) != 3 {
		t.Errorf("pins are %v, want those of the other", left)
	}
	w.mustRemove(t, theirs.id)
}

// A component that goes without a swap leaves a slot that lets packets go on. xdp-loader cannot make sense of it; we
// can, and the next change mends it.
func TestRemoveWithoutDispatcherEndsTheProgram(t *testing.T) {
	w := newWorld(t)
	mine, other := w.program(t, "mine", drop), w.program(t, "other", pass)
	w.mustAdd(t, mine, Options{Run: Run{Priority: 1, ProceedOn: onPass}})
	w.mustAdd(t, other, Options{Run: Run{Priority: 2, ProceedOn: onPass}})
	w.missed(t, "the other", other, mine)
	// From another namespace, where the interface is not.
	elsewhere := &world{Protocol: w.Protocol, bpffs: w.bpffs, here: bpftest.NewNetNS(t), ifindex: w.ifindex}
	elsewhere.mustRemove(t, mine.id)
	// The kernel ends a link that nobody holds on a thread of its own.
	for end, was := time.Now().Add(2*time.Second), other.now(t); other.now(t) == was && time.Now().Before(end); {
		w.send(t, 1)
		time.Sleep(time.Millisecond)
	}
	w.missed(t, "the removed", mine, other)
	if got := w.running(t); got != "other" {
		t.Errorf("components are %q, want the other", got)
	}
	w.mustAdd(t, mine, Options{Run: Run{Priority: 3, ProceedOn: onPass}})
	w.meets(t, "the one that is back", mine)
	w.wantStatus(t, fmt.Sprintf("2 other %d XDP_PASS", other.id), fmt.Sprintf("3 mine %d XDP_PASS", mine.id))
	elsewhere.mustRemove(t, mine.id)
	w.mustRemove(t, other.id)
}

func TestWaitForLockEndsWithContext(t *testing.T) {
	w := newWorld(t)
	p := w.program(t, "count", pass)
	w.mustAdd(t, p, Options{})
	lock, err := lock(t.Context(), w.Dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for name, call := range map[string]func() error{
		"add":    func() error { return w.Add(ctx, w.ifindex, p.Program, Options{}) },
		"remove": func() error { return w.Remove(ctx, w.ifindex, p.id) },
		"read":   func() error { _, err := w.Read(ctx, w.ifindex); return err },
	} {
		if err := w.here.Do(call); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want deadline exceeded", name, err)
		}
	}
	lock.Close()
	w.mustRemove(t, p.id)
}
