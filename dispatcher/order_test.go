// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// The order of members is that of their priorities, then volumes, then programs, whatever order they come in.
func TestOrderIsAFunctionOfTheSet(t *testing.T) {
	r := seeded(t)
	for range 1000 {
		set := randomSet(r, 12)
		sorted := shuffled(r, set)
		Order(sorted)
		for i := 1; i < len(sorted); i++ {
			a, b := sorted[i-1], sorted[i]
			if a.Priority > b.Priority || a.Priority == b.Priority && (a.Volume > b.Volume || a.Volume == b.Volume && a.Program >= b.Program) {
				t.Fatalf("%+v comes before %+v", a, b)
			}
		}
		again := shuffled(r, set)
		Order(again)
		if diff := cmp.Diff(sorted, again); diff != "" {
			t.Fatalf("order depends on that before (-one +other):\n%s", diff)
		}
	}
}

// Whatever order members come in, whoever attaches them, and whatever was there before, the kernel gets the same program.
func TestSameSetIsTheSameProgram(t *testing.T) {
	for carrier, sets := range map[string]int{"clsact": 4, "tcx": 2, "xdp": 2} {
		t.Run(carrier, func(t *testing.T) {
			w := newWorld(t, carrier)
			r := seeded(t)
			var programs []Program
			for i := range 8 {
				prog, _ := w.program(t, fmt.Sprint("count", i), carriers[carrier].pass)
				if i%3 == 2 {
					prog = w.slotted(t, prog)
				}
				programs = append(programs, prog)
			}
			for range sets {
				set := randomSet(r, len(programs))
				var want running
				for round := range 3 {
					w.Dispatcher = w.restarted()
					order := rand.Perm(len(set))
					if round == 2 { // with one more, which leaves again
						w.mustAttach(t, Member{Volume: "guest", Program: "count", Priority: 2, ProceedOn: proceedOnPass(w)}, programs[0])
					}
					for n, i := range order {
						if n == len(order)/2 {
							w.Dispatcher = w.restarted()
						}
						set[i].ProceedOn = proceedOnPass(w)
						w.mustAttach(t, set[i], programs[i])
					}
					w.mustDetach(t, "guest")
					got := w.readRunning(t)
					if round == 0 {
						want = got
						if sorted := shuffled(r, set); !slices.EqualFunc(got.Members, sortedMembers(sorted), Member.equal) {
							t.Errorf("members run as %v", got.Members)
						}
					} else if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("another program (-first +then):\n%s", diff)
					}
					for _, m := range set {
						w.mustDetach(t, m.Volume)
					}
					w.nothingLeft(t)
				}
			}
		})
	}
}

func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// randomSet makes members of few priorities, volumes and programs, so that there are ties.
func randomSet(r *rand.Rand, n int) (set []Member) {
	for len(set) < n {
		m := Member{
			Volume: string(rune('a' + r.IntN(4))), Program: string(rune('p' + r.IntN(4))),
			Priority: r.IntN(3), ProceedOn: []volume.Verdict{"pass"},
		}
		if !slices.ContainsFunc(set, m.same) {
			set = append(set, m)
		}
	}
	return set
}

func shuffled(r *rand.Rand, members []Member) []Member {
	members = slices.Clone(members)
	r.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	return members
}

func sortedMembers(members []Member) []Member {
	Order(members)
	return members
}

// restarted returns a Dispatcher as a new process would make it.
func (w *world) restarted() *Dispatcher {
	d := New(w.root, w.options)
	d.classic = w.classic
	return d
}

// running is what the kernel runs at a point, without what differs by chance: the ids of the program and of its array.
type running struct {
	Members []Member
	Ways    []Way
	Code    []string // instruction by instruction
}

func (w *world) readRunning(t testing.TB) (r running) {
	t.Helper()
	st := w.status(t)
	for _, m := range st.Members {
		r.Members, r.Ways = append(r.Members, m.Member), append(r.Ways, m.Way)
	}
	prog, err := ebpf.NewProgramFromID(st.Program.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	insns, err := info.Instructions()
	if err != nil {
		t.Fatal(err)
	}
	slots := w.slots(t)
	for _, ins := range insns {
		line := fmt.Sprintf("%v %d %d %d %d", ins.OpCode, ins.Dst, ins.Src, ins.Offset, ins.Constant)
		if ins.IsLoadFromMap() && ebpf.MapID(ins.Constant) == slots {
			line = "load of the slots"
		}
		r.Code = append(r.Code, line)
	}
	return r
}

// slots is the id of the program array of the point.
func (w *world) slots(t testing.TB) ebpf.MapID {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(w.root+"/"+w.point.dirName()+"/"+slotsPin, nil)
	if err != nil {
		return 0
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}
