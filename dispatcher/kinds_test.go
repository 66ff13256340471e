// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/bpf/members"
)

// needSlots are the members that cannot be fused, with the beginning of the reason. All others are.
var needSlots = map[string]string{
	"tail_call":            "it makes tail calls",
	"tail_call_function":   "it makes tail calls",
	"kconfig":              "it reads configuration variables of the kernel",
	"ksym":                 "it uses the address of a kernel symbol",
	"weak":                 "it uses the address of a kernel symbol",
	"exception":            "it throws exceptions",
	"full_stack":           "its stack of 512 bytes leaves no room",
	"deep_stack":           "its stack of 512 bytes leaves no room",
	"legacy_load":          "it loads packet bytes by LD_ABS",
	"legacy_load_function": "it loads packet bytes by LD_ABS",
	"proprietary":          `its license "Proprietary" is not GPL-compatible`,
	"proprietary_tc":       `its license "Proprietary" is not GPL-compatible`,
}

// kind is a member of package members, loaded.
type kind struct {
	members.Member
	Program
	collection *ebpf.Collection
}

func loadKind(t testing.TB, m members.Member, verdict int32) kind {
	t.Helper()
	spec := m.Spec(t, verdict)
	// As package loader does.
	if m.Type == ebpf.XDP {
		spec.Programs[m.Program].AttachType = ebpf.AttachXDP
	} else {
		spec.Programs[m.Program].AttachType = ebpf.AttachNone
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types})
	if err != nil {
		t.Fatalf("%s: %+v", m.Program, err)
	}
	t.Cleanup(coll.Close)
	return kind{m, Program{Program: coll.Programs[m.Program], Spec: spec.Programs[m.Program], Maps: coll.Maps}, coll}
}

func (k kind) result(t testing.TB) members.Result {
	t.Helper()
	return members.ReadResult(t, k.collection.Maps[k.Member.Program+"_result"])
}

// What a member does does not change because there are others: a counter before it and one behind.
func TestMembersOfEveryKindShareAPoint(t *testing.T) {
	for _, m := range members.All() {
		t.Run(fmt.Sprintf("%v/%s", m.Type, m.Program), func(t *testing.T) {
			pass, drop, carrier := int32(0), int32(2), "clsact"
			if m.Type == ebpf.XDP {
				pass, drop, carrier = 2, 1, "xdp"
			}
			verdicts := []int32{pass, drop}
			if testing.Short() { // an emulated machine
				verdicts = verdicts[:1]
			}
			for _, verdict := range verdicts {
				w := newWorld(t, carrier)
				alone, k := loadKind(t, m, verdict), loadKind(t, m, verdict)
				before, after := loadKind(t, members.Find(t, m.Type, "counter"), pass), loadKind(t, members.Find(t, m.Type, "counter"), pass)
				w.mustAttach(t, Member{Volume: "before", Program: "counter", Priority: 1, ProceedOn: proceedOnPass(w)}, before.Program)
				w.mustAttach(t, Member{Volume: "after", Program: "counter", Priority: 3, ProceedOn: proceedOnPass(w)}, after.Program)
				at := w.mustAttach(t, Member{Volume: "kind", Program: m.Program, Priority: 2, ProceedOn: proceedOnPass(w)}, k.Program)
				why := needSlots[m.Program]
				if m.Program == "conntrack" && at.Way == Slot { // where it is a module
					why = "it calls a function of a kernel module"
				}
				if why != "" && (at.Way != Slot || !strings.HasPrefix(at.Why, why)) || why == "" && at.Way != Fused {
					t.Errorf("way is %s, because %q; want a slot because %q", at.Way, at.Why, why)
				}
				fused := w.runningProgram(t)
				frame := make([]byte, 64)
				frame[12], frame[13] = 0x08, 0x00 // IPv4
				const n = 3
				behind := uint64(0)
				for range n {
					want, _, err := alone.Program.Test(frame)
					if err != nil {
						t.Fatal(err)
					}
					got, _, err := fused.Test(frame)
					if err != nil {
						t.Fatal(err)
					}
					if int32(want) == pass { // it goes on to the last, and is then nobody's
						behind++
						if m.Type == ebpf.SchedCLS {
							want = 0xffffffff
						}
					}
					if got != want {
						t.Fatalf("verdict is %d, alone %d", int32(got), int32(want))
					}
				}
				want, got := alone.result(t), k.result(t)
				if m.Program == "timer" { // may ring or not
					want.Value = got.Value
				}
				if got != want {
					t.Errorf("result is %+v, alone %+v", got, want)
				}
				if b, a := before.result(t).Packets, after.result(t).Packets; b != n || a != behind {
					t.Errorf("%d packets before and %d behind, want %d and %d", b, a, n, behind)
				}
				for _, v := range []string{"kind", "before", "after"} {
					w.mustDetach(t, v)
				}
			}
		})
	}
}

// runningProgram is what packets meet at the point.
func (w *world) runningProgram(t testing.TB) *ebpf.Program {
	t.Helper()
	st, err := w.Status()
	if err != nil || len(st) != 1 {
		t.Fatalf("status is %+v, %v", st, err)
	}
	prog, err := ebpf.NewProgramFromID(st[0].Program.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}
