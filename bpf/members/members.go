// SPDX-License-Identifier: Apache-2.0

// Package members holds XDP and TC programs for tests of what shares a hook among programs: one of each kind that is
// hard to run beside others, as clang makes them. Only tests import it. Programs are made as those of package bpf are.
//
// A program counts its packets in its map <program>_result, and returns its variable <program>_verdict:
//
//	m := members.Find(t, ebpf.XDP, "loop")
//	coll, err := ebpf.NewCollection(m.Spec(t, xdpDrop))
//	...
//	got := members.ReadResult(t, coll.Maps["loop_result"])
//
// Invariants:
//   - a program does alone what its kind says, on every kernel that has what it needs (TestMemberRunsAlone, and a test
//     for what each does to packets);
//   - All has every program of every object (TestAllHasEveryProgram).
package members

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

//go:generate go run ../generate.go

var (
	//go:embed xdp.bpf.o
	xdp string
	//go:embed tc.bpf.o
	tc string
	//go:embed functions.bpf.o
	functions string
	//go:embed long.bpf.o
	long string
	//go:embed maps.bpf.o
	maps string
	//go:embed nobtf.bpf.o
	nobtf string
	//go:embed proprietary.bpf.o
	proprietary string
	//go:embed twin_a.bpf.o
	twinA string
	//go:embed twin_b.bpf.o
	twinB string
)

// XDP is the object of most members for XDP.
func XDP() []byte { return []byte(xdp) }

// TC is the object of most members for TC.
func TC() []byte { return []byte(tc) }

// Functions has the XDP programs functions_a to functions_c, of 91 functions each.
func Functions() []byte { return []byte(functions) }

// Long has the XDP program long_body, of more than 32767 instructions.
func Long() []byte { return []byte(long) }

// Maps has the XDP programs maps_a to maps_d, of 20 maps each besides .rodata.
func Maps() []byte { return []byte(maps) }

// NoBTF has the programs nobtf and nobtf_tc, without BTF.
func NoBTF() []byte { return []byte(nobtf) }

// Proprietary has the programs proprietary and proprietary_tc, whose license is not compatible with the GPL.
func Proprietary() []byte { return []byte(proprietary) }

// TwinA has the programs twin and twin_tc. Programs, functions, maps and variables of TwinB have the same names.
func TwinA() []byte { return []byte(twinA) }

// TwinB has the programs twin and twin_tc, which do something else than those of TwinA.
func TwinB() []byte { return []byte(twinB) }

// Member is one program.
type Member struct {
	Program string
	Type    ebpf.ProgramType // XDP or SchedCLS
	Object  func() []byte
	// Since is the first Linux that runs it, and Feature what came with that. Both are empty if Linux 6.1 runs it.
	Since, Feature string
}

// Find returns the member of XDP, TC or another object by its name. (TwinB's have the names of TwinA's.)
func Find(t testing.TB, typ ebpf.ProgramType, program string) Member {
	t.Helper()
	for _, m := range All() {
		if m.Type == typ && m.Program == program {
			return m
		}
	}
	t.Fatalf("no member %s for %v", program, typ)
	return Member{}
}

// Spec returns the program and all that it needs of its object, and nothing else. It returns the verdict, if its kind
// leaves that open. The test skips on a kernel that is too old for it.
func (m Member) Spec(t testing.TB, verdict int32) *ebpf.CollectionSpec {
	t.Helper()
	if m.Since != "" {
		bpftest.SkipOnOldKernel(t, m.Since, m.Feature)
	}
	object, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(m.Object()))
	if err != nil {
		t.Fatal(err)
	}
	if v := object.Variables[m.verdictVariable()]; v != nil {
		section := object.Maps[v.SectionName].Contents[0].Value.([]byte)
		binary.NativeEndian.PutUint32(section[v.Offset:], uint32(verdict))
	}
	// Without Variables, for which cilium/ebpf maps data sections into the process until the next garbage collection.
	spec := &ebpf.CollectionSpec{
		Programs:  map[string]*ebpf.ProgramSpec{},
		Maps:      map[string]*ebpf.MapSpec{},
		Types:     object.Types,
		ByteOrder: object.ByteOrder,
	}
	reach(spec, object, m.Program)
	return spec
}

func (m Member) verdictVariable() string {
	if m.Program == "tail_call" {
		return "tail_target_verdict"
	}
	return m.Program + "_verdict"
}

// reach adds to spec a program of an object, the maps that it uses, and the programs that those hold.
func reach(spec, object *ebpf.CollectionSpec, program string) {
	if spec.Programs[program] != nil {
		return
	}
	spec.Programs[program] = object.Programs[program]
	for _, ins := range object.Programs[program].Instructions {
		m := object.Maps[ins.Reference()]
		if m == nil || !ins.IsLoadFromMap() {
			continue
		}
		spec.Maps[ins.Reference()] = m
		if m.Type == ebpf.ProgramArray {
			for _, kv := range m.Contents {
				reach(spec, object, kv.Value.(string))
			}
		}
	}
}

// Result is what a member tells by its map <program>_result.
type Result struct {
	Packets uint64 // how often it ran
	Value   uint64 // shows that its kind worked; members_test.go says what it is
}

// ReadResult reads a member's map.
func ReadResult(t testing.TB, m *ebpf.Map) Result {
	t.Helper()
	if m.Type() != ebpf.PerCPUArray {
		var r Result
		if err := m.Lookup(uint32(0), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	var sum Result
	var perCPU []Result
	if err := m.Lookup(uint32(0), &perCPU); err != nil {
		t.Fatal(err)
	}
	for _, r := range perCPU {
		sum.Packets += r.Packets
		sum.Value += r.Value
	}
	return sum
}
