// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/dispatcher/fuse"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// unchanged does something that must fail and wants the point to be as before: members, program, pins.
func (w *world) unchanged(t testing.TB, try func()) {
	t.Helper()
	status, pins := w.status(t), tree(t, w.root)
	try()
	if diff := cmp.Diff(status, w.status(t)); diff != "" {
		t.Errorf("status changed (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(pins, tree(t, w.root)); diff != "" {
		t.Errorf("pins changed (-before +after):\n%s", diff)
	}
}

// fillSlots attaches as many members as have a slot.
func (w *world) fillSlots(t testing.TB) (members []Member, prog Program, packets *ebpf.Map) {
	t.Helper()
	packets = w.counter(t, "packets")
	insns := append(asm.Instructions{asm.StoreImm(asm.RFP, -512, 0, asm.Word)}, countOne("packets", 0)...) // all the stack there is
	prog = w.load(t, "deep", append(insns, asm.Mov.Imm(asm.R0, carriers[w.carrier].pass), asm.Return()), map[string]*ebpf.Map{"packets": packets})
	for i := range fuse.MaxSlots {
		m := Member{Volume: fmt.Sprint("slot", i), Program: "count", Priority: 100 + i, ProceedOn: proceedOnPass(w)}
		w.mustAttach(t, m, prog)
		members = append(members, m)
	}
	return members, prog, packets
}

func TestFullPointStaysAsItIs(t *testing.T) {
	for _, carrier := range []string{"xdp", "clsact"} {
		t.Run(carrier, func(t *testing.T) {
			w := newWorld(t, carrier)
			members, prog, packets := w.fillSlots(t)
			fused, _ := w.program(t, "fused", carriers[carrier].pass)
			other := Member{Volume: "fused", Program: "count", Priority: 1, ProceedOn: proceedOnPass(w)}
			w.mustAttach(t, other, fused) // needs no slot
			f := w.flow(t, time.Millisecond)
			w.unchanged(t, func() {
				for _, m := range []Member{
					{Volume: "more", Program: "count", Priority: 50, ProceedOn: proceedOnPass(w)},
					{Volume: "more", Program: "count", Priority: 500, ProceedOn: proceedOnPass(w)},
					other, // a replacement
				} {
					_, err := w.attach(m, prog)
					want := `: no place for program "count": it needs a slot, since its stack of 512 bytes leaves no room, and all 32 are taken; use another interface`
					if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), want) {
						t.Errorf("error is %v, want %q", err, want)
					}
				}
			})
			sent, lost := f.stop(t)
			if met := count(t, packets); lost > 0 || met != 32*sent {
				t.Errorf("%d of %d packets were lost, and the 32 members met %d", lost, sent, met)
			}
			w.mustDetach(t, members[7].Volume)
			w.mustAttach(t, Member{Volume: "more", Program: "count", ProceedOn: proceedOnPass(w)}, prog)
			for _, m := range members {
				w.mustDetach(t, m.Volume)
			}
			w.mustDetach(t, "more")
			w.mustDetach(t, other.Volume)
		})
	}
}

// A process that was killed while it tried to attach a member that has no place holds up nobody else.
func TestKilledAttachOfOneTooManyHoldsUpNobody(t *testing.T) {
	w := newWorld(t, "clsact")
	members, _, _ := w.fillSlots(t)
	other, _ := w.program(t, "other", 0)
	more := errand{Does: "attach", Slot: true, Member: Member{Volume: "more", Program: "count", Priority: 1, ProceedOn: proceedOnPass(w)}}
	for more.Dies = firstStep(); ; more.Dies += stride() {
		killed, err := w.start(t, more)
		if !killed {
			if err == nil || !strings.Contains(err.Error(), "all 32 are taken") {
				t.Errorf("error is %v, want that all slots are taken", err)
			}
			break
		}
		m := Member{Volume: "other", Program: "count", Priority: 2, ProceedOn: proceedOnPass(w)}
		w.mustAttach(t, m, other)
		w.mustDetach(t, m.Volume)
		if err := w.Recover(t.Context()); err != nil {
			t.Error(err)
		}
		w.mustDetach(t, more.Member.Volume)
	}
	for _, m := range members {
		w.mustDetach(t, m.Volume)
	}
}

// A driver refuses a program that cannot take the interface's large packets: the ones that can go on as before.
func TestProgramThatTheDriverRefusesChangesNothing(t *testing.T) {
	w := newWorld(t, "xdp")
	for _, ns := range []interface{ Do(func() error) error }{w.here, w.there} {
		err := ns.Do(func() error {
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
	frags, packets := w.counting(t, "frags", func(s *ebpf.ProgramSpec) { s.Flags = 1 << 5 }) // BPF_F_XDP_HAS_FRAGS
	small, _ := w.program(t, "small", 2)
	m := steady
	m.ProceedOn = proceedOnPass(w)
	second := second
	second.ProceedOn = proceedOnPass(w)
	w.mustAttach(t, m, frags)
	f := w.flow(t, 0)
	w.unchanged(t, func() {
		for _, newcomer := range []Member{second, m} { // a second, and a replacement
			if _, err := w.attach(newcomer, small); !errors.Is(err, ebpf.ErrNotSupported) || !strings.Contains(err.Error(), "lower the MTU") {
				t.Errorf("error is %v, want not supported by the driver", err)
			}
		}
	})
	sent, lost := f.stop(t)
	if met := counted(t, packets, sent); lost > 0 || met != sent {
		t.Errorf("of %d packets, %d were lost and %d met the member", sent, lost, met)
	}
	w.mustDetach(t, m.Volume)
}

// counting loads a program that counts its packets, with a change to its blueprint.
func (w *world) counting(t testing.TB, name string, change func(*ebpf.ProgramSpec)) (Program, *ebpf.Map) {
	t.Helper()
	packets := w.counter(t, "packets")
	insns := append(countOne("packets", 0), asm.Mov.Imm(asm.R0, carriers[w.carrier].pass), asm.Return())
	spec := programSpec(carriers[w.carrier].typ, name, insns)
	change(spec)
	prog, err := loadProgram(spec, map[string]*ebpf.Map{"packets": packets})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog, packets
}

// A mode that the driver lacks leaves a lone member in the one that it has.
func TestModeThatTheDriverLacksChangesNothing(t *testing.T) {
	w := newWorld(t, "xdp")
	w.point = w.resolve(t, &volume.XDP{Interfaces: []string{"lo"}})
	prog, _ := w.program(t, "count", 2)
	w.mustAttach(t, first, prog)
	for _, p := range []string{"same", "anew"} {
		if p == "anew" {
			prog, _ = w.program(t, "anew", 2)
		}
		if err := w.attachMode(first, prog, volume.XDPNative); !errors.Is(err, ebpf.ErrNotSupported) {
			t.Errorf("error is %v, want not supported", err)
		}
		st := w.status(t)
		if st.Severed || st.Mode != volume.XDPGeneric || len(st.Members) != 1 || st.Members[0].Way != Plain || st.Members[0].Loaded.Name != "count" {
			t.Errorf("status is %+v, want the member running generic", st)
		}
	}
	w.mustDetach(t, first.Volume)
}

func TestPointTakesTwoHundredAndFiftySixMembers(t *testing.T) {
	w := newWorld(t, "clsact") // the quickest
	turn := w.counter(t, "turn")
	volume := func(i int) string { return fmt.Sprint("v", i%8) }
	members := maxMembers
	if testing.Short() { // an emulated machine
		members /= 8
	}
	for _, i := range rand.Perm(members) {
		m := Member{Volume: volume(i), Program: fmt.Sprint("turn", i), Priority: i, ProceedOn: proceedOnPass(w)}
		w.mustAttach(t, m, w.taking(t, i, turn))
	}
	if members == maxMembers {
		w.unchanged(t, func() {
			_, err := w.attach(Member{Volume: "more", Program: "turn"}, w.taking(t, 0, turn))
			if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "256 programs run there already") {
				t.Errorf("error is %v, want a full point", err)
			}
		})
	}
	for _, way := range w.ways(t) {
		if way != Fused {
			t.Fatalf("members run %v, want all fused", w.ways(t))
		}
	}
	if _, _, err := w.runningProgram(t).Test(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	if got := number(t, turn, 0); got != uint64(members) {
		t.Errorf("%d of %d members ran in order", got, members)
	}
	for i := range 8 {
		w.mustDetach(t, volume(i))
	}
}

// taking makes a program that takes a turn if it is its own.
func (w *world) taking(t testing.TB, i int, turn *ebpf.Map) Program {
	t.Helper()
	return w.load(t, "turn", asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, 0).WithReference("turn"),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.JNE.Imm(asm.R1, int32(i), "out"),
		asm.Mov.Imm(asm.R1, int32(i+1)),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, carriers[w.carrier].pass).WithSymbol("out"),
		asm.Return(),
	}, map[string]*ebpf.Map{"turn": turn})
}
