// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf/members"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// chain attaches XDP members in this order, the last first, so that each change of order is one that matters.
func (w *world) chain(t testing.TB, kinds ...kind) {
	t.Helper()
	for i, k := range slices.Backward(kinds) {
		w.mustAttach(t, place(i, k), k.Program)
	}
	t.Cleanup(func() {
		for i := range kinds {
			w.mustDetach(t, place(i, kind{}).Volume)
		}
	})
}

func place(i int, k kind) Member {
	return Member{Volume: fmt.Sprint("v", i), Program: k.Member.Program, Priority: 10 * i, ProceedOn: []volume.Verdict{"pass"}}
}

// xdpKinds loads members that let packets pass.
func xdpKinds(t testing.TB, names ...string) (kinds []kind) {
	t.Helper()
	for _, name := range names {
		kinds = append(kinds, loadKind(t, members.Find(t, ebpf.XDP, name), xdpPass))
	}
	return kinds
}

const xdpPass = 2

// ways are how the members of the only point run, in order.
func (w *world) ways(t testing.TB) (ways []Way) {
	t.Helper()
	st, err := w.Status()
	if err != nil || len(st) != 1 {
		t.Fatalf("status is %+v, %v", st, err)
	}
	for _, m := range st[0].Members {
		ways = append(ways, m.Way)
	}
	return ways
}

func (w *world) wantWays(t testing.TB, want ...Way) {
	t.Helper()
	if got := w.ways(t); !slices.Equal(got, want) {
		t.Errorf("ways are %v, want %v", got, want)
	}
}

// runFrame sends one frame of a size through the program of the point and wants it to pass.
func (w *world) runFrame(t testing.TB, size int) {
	t.Helper()
	frame := make([]byte, size)
	frame[12] = 0x08 // IPv4
	verdict, _, err := w.runningProgram(t).Test(frame)
	if err != nil {
		t.Fatal(err)
	}
	if verdict != xdpPass {
		t.Errorf("verdict is %d, want %d", verdict, xdpPass)
	}
}

func wantResult(t testing.TB, k kind, packets, value uint64) {
	t.Helper()
	if got, want := k.result(t), (members.Result{Packets: packets, Value: value}); got != want {
		t.Errorf("%s: result is %+v, want %+v", k.Member.Program, got, want)
	}
}

// Two objects whose programs, functions, maps and variables have the same names.
func TestTwinsKeepWhatIsTheirs(t *testing.T) {
	w := newWorld(t, "xdp")
	b := members.Find(t, ebpf.XDP, "twin")
	b.Object = members.TwinB
	first, second := xdpKinds(t, "twin")[0], loadKind(t, b, xdpPass)
	w.chain(t, first, second)
	w.wantWays(t, Fused, Fused)
	w.runFrame(t, 64)
	wantResult(t, first, 1, 11)
	wantResult(t, second, 1, 1100)
}

// What a member does to a packet, those behind it see, whether they are fused or have a slot.
func TestLaterMembersSeeTheChangedPacket(t *testing.T) {
	w := newWorld(t, "xdp")
	kinds := xdpKinds(t, "counter", "meta_write", "meta_read", "tail_target", "adjust_tail", "counter", "tail_call", "adjust_head", "meta_read", "counter")
	w.chain(t, kinds...)
	w.wantWays(t, Fused, Fused, Fused, Fused, Fused, Fused, Slot, Fused, Fused, Fused)
	w.runFrame(t, 128)
	wantResult(t, kinds[0], 1, 128)
	wantResult(t, kinds[2], 1, 0xcafe)
	wantResult(t, kinds[5], 1, 124)
	wantResult(t, kinds[9], 1, 128)
	if target := members.ReadResult(t, kinds[6].collection.Maps["tail_target_result"]); target.Value != 124 {
		t.Errorf("the target of the tail call saw %d bytes, want 124", target.Value)
	}
}

// One program can use 64 maps.
func TestMembersWithTooManyMapsGetSlots(t *testing.T) {
	w := newWorld(t, "xdp")
	kinds := xdpKinds(t, "maps_a", "maps_b", "counter", "maps_c", "maps_d")
	w.chain(t, kinds...)
	w.wantWays(t, Slot, Slot, Fused, Fused, Fused) // 21 maps each, and 2
	w.runFrame(t, 64)
	for _, k := range kinds {
		if got := k.result(t).Packets; got != 1 {
			t.Errorf("%s ran %d times, want 1", k.Member.Program, got)
		}
	}
}

// One program can have 256 functions.
func TestMembersWithTooManyFunctionsGetSlots(t *testing.T) {
	w := newWorld(t, "xdp")
	kinds := xdpKinds(t, "functions_a", "functions_b", "functions_c")
	w.chain(t, kinds...)
	w.wantWays(t, Slot, Fused, Fused)
	w.runFrame(t, 64)
	for _, k := range kinds {
		wantResult(t, k, 1, 90)
	}
}

// The verifier looks at a million instructions of one program: of four that take 300,000 each, one has to give way.
func TestCostlyMembersGetSlots(t *testing.T) {
	w := newWorld(t, "xdp")
	kinds := xdpKinds(t, "costly", "costly", "costly", "costly")
	w.chain(t, kinds...)
	w.wantWays(t, Slot, Fused, Fused, Fused)
	w.runFrame(t, 64)
	for _, k := range kinds {
		wantResult(t, k, 1, 1)
	}
}

// A program whose instructions do not show how deep its stack is writes over what the program of the point keeps there.
// The verifier notices, and only the one is moved.
func TestMemberThatTheVerifierRefusesFusedGetsASlot(t *testing.T) {
	w := newWorld(t, "xdp")
	odd := &ebpf.ProgramSpec{Name: "odd", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R2, -16).WithSymbol("odd"),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Reg(asm.R3, asm.R2),
		asm.Mov.Imm(asm.R0, 2),
		asm.StoreMem(asm.R3, 0, asm.R0, asm.DWord),
		asm.Return(),
	}}
	prog, err := loadProgram(odd, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	kinds := xdpKinds(t, "counter")
	w.mustAttach(t, Member{Volume: "a", Program: "counter", Priority: 2, ProceedOn: []volume.Verdict{"pass"}}, kinds[0].Program)
	at := w.mustAttach(t, Member{Volume: "b", Program: "odd", Priority: 1, ProceedOn: []volume.Verdict{"pass"}}, prog)
	if want := "the verifier takes it alone, but not fused"; at.Way != Slot || !strings.HasPrefix(at.Why, want) {
		t.Errorf("way is %s, because %q; want a slot, because %q", at.Way, at.Why, want)
	}
	w.wantWays(t, Slot, Fused)
	if _, _, err := w.runningProgram(t).Test(make([]byte, 64)); err != nil {
		t.Error(err)
	}
	wantResult(t, kinds[0], 1, 64)
	w.mustDetach(t, "a")
	w.mustDetach(t, "b")
}

// Packets in fragments come only if every member can take them; what has a slot is loaded anew if it has to do without.
// An interface whose packets are that large takes no other program.
func TestFragmentsNeedEveryMember(t *testing.T) {
	w := newWorld(t, "xdp")
	mtu := func(bytes int) {
		t.Helper()
		for _, ns := range []*bpftest.NetNS{w.here, w.there} {
			err := ns.Do(func() error {
				l, err := netlink.LinkByName("veth0")
				if err != nil {
					return err
				}
				return netlink.LinkSetMTU(l, bytes)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	mtu(9000)
	frags := xdpKinds(t, "frags", "frags")
	slot, tail := loadWithFrags(t, "full_stack"), loadWithFrags(t, "tail_call")

	w.mustAttach(t, place(0, frags[0]), frags[0].Program)
	w.mustAttach(t, place(1, slot), slot.Program)
	w.mustAttach(t, place(2, frags[1]), frags[1].Program)
	w.wantWays(t, Fused, Slot, Fused)
	w.send(t, 5)
	for _, k := range append(frags, slot) {
		if got := k.result(t).Packets; got < 5 {
			t.Errorf("%s ran %d times for 5 packets", k.Member.Program, got)
		}
	}
	counter := xdpKinds(t, "counter")[0]
	if _, err := w.attach(place(3, counter), counter.Program); !errors.Is(err, ebpf.ErrNotSupported) || !strings.Contains(err.Error(), "MTU") {
		t.Errorf("without fragments: error is %v", err)
	}
	w.wantWays(t, Fused, Slot, Fused)
	mtu(1500)
	w.mustAttach(t, place(3, counter), counter.Program)
	w.wantWays(t, Fused, Slot, Fused, Fused)
	w.runFrame(t, 64)
	wantResult(t, counter, 1, 64)
	// The programs in its own array take fragments, and it cannot without.
	if _, err := w.attach(place(4, tail), tail.Program); !errors.Is(err, ebpf.ErrNotSupported) || !strings.Contains(err.Error(), "it takes packets in fragments, others here do not") {
		t.Errorf("tail call with fragments: error is %v", err)
	}
	w.wantWays(t, Fused, Slot, Fused, Fused)
	for i := range 4 {
		w.mustDetach(t, fmt.Sprint("v", i))
	}
}

// loadWithFrags loads a member as if its section were xdp.frags.
func loadWithFrags(t testing.TB, name string) kind {
	t.Helper()
	m := members.Find(t, ebpf.XDP, name)
	spec := m.Spec(t, xdpPass)
	for _, prog := range spec.Programs {
		prog.AttachType, prog.Flags = ebpf.AttachXDP, unix.BPF_F_XDP_HAS_FRAGS
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	return kind{m, Program{Program: coll.Programs[name], Spec: spec.Programs[name], Maps: coll.Maps}, coll}
}

// Code of different licenses does not become one program: the ones that are not GPL-compatible stand aside.
func TestLicensesAreNotMixed(t *testing.T) {
	w := newWorld(t, "xdp")
	kinds := xdpKinds(t, "proprietary", "proprietary", "counter")
	w.mustAttach(t, place(0, kinds[0]), kinds[0].Program)
	w.mustAttach(t, place(1, kinds[1]), kinds[1].Program)
	w.wantWays(t, Fused, Fused)
	w.mustAttach(t, place(2, kinds[2]), kinds[2].Program)
	w.wantWays(t, Slot, Slot, Fused)
	w.runFrame(t, 64)
	for _, k := range kinds {
		wantResult(t, k, 1, 64)
	}
	for i := range kinds {
		w.mustDetach(t, fmt.Sprint("v", i))
	}
}

// Tools that trace a program find its entry function and what it takes by the BTF.
func TestFusedProgramTellsItsEntryFunction(t *testing.T) {
	w := newWorld(t, "xdp")
	w.chain(t, xdpKinds(t, "counter", "nobtf", "subprograms")...)
	prog := w.runningProgram(t)
	handle, err := prog.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	var entry *btf.Func
	if err := spec.TypeByName(info.Name, &entry); err != nil {
		t.Fatal(err)
	}
	ctx, ok := entry.Type.(*btf.FuncProto).Params[0].Type.(*btf.Pointer)
	if !ok || ctx.Target.TypeName() != "xdp_md" {
		t.Errorf("%s takes %v, want a pointer to xdp_md", info.Name, entry.Type)
	}
}
