// SPDX-License-Identifier: Apache-2.0

package members_test

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/bpfvol/bpfvol/bpf/members"
)

// both runs a test for XDP and for TC.
func both(t *testing.T, test func(t *testing.T, typ ebpf.ProgramType, pass int32)) {
	t.Run("xdp", func(t *testing.T) { test(t, ebpf.XDP, xdpPass) })
	t.Run("tc", func(t *testing.T) { test(t, ebpf.SchedCLS, tcOK) })
}

func TestTimerRingsAfterTheProgram(t *testing.T) {
	both(t, func(t *testing.T, typ ebpf.ProgramType, pass int32) {
		l := find(t, typ, "timer", pass)
		l.run(t, frame(64))
		for end := time.Now().Add(5 * time.Second); l.result(t).Value == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no timer rang within 5 s")
			}
		}
	})
}

func TestTailCallRunsTarget(t *testing.T) {
	both(t, func(t *testing.T, typ ebpf.ProgramType, pass int32) {
		l := find(t, typ, "tail_call", 42)
		if got, _ := l.run(t, frame(64)); got != 42 {
			t.Errorf("got verdict %d, want 42", got)
		}
		target := members.ReadResult(t, l.Maps["tail_target_result"])
		if want := (members.Result{Packets: 1, Value: 64}); target != want {
			t.Errorf("target: got %+v, want %+v", target, want)
		}
	})
}

func TestTailCallInFunctionComesBack(t *testing.T) {
	both(t, func(t *testing.T, typ ebpf.ProgramType, pass int32) {
		l := find(t, typ, "tail_call_function", 42)
		if got, _ := l.run(t, frame(64)); got != 42 {
			t.Errorf("got verdict %d, want 42", got)
		}
		target := members.ReadResult(t, l.Maps["tail_target_result"])
		if want := (members.Result{Packets: 1, Value: 64}); target != want {
			t.Errorf("target: got %+v, want %+v", target, want)
		}
		if got := l.result(t).Value; got != uint64(pass) {
			t.Errorf("the function returned %d, want the target's verdict %d", got, pass)
		}
	})
}

func TestStacksAreFull(t *testing.T) {
	for program, want := range map[string]string{
		"full_stack":      "stack depth 512",
		"snug_stack":      "stack depth 504",
		"deep_stack":      "stack depth 480+32",
		"snug_deep_stack": "stack depth 472+32",
	} {
		both(t, func(t *testing.T, typ ebpf.ProgramType, pass int32) {
			log := find(t, typ, program, pass).Programs[program].VerifierLog
			if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(want) + `\b`).MatchString(log) {
				t.Errorf("%s: no %q in the verifier's log:\n%s", program, want, log)
			}
		})
	}
}

// The verifier follows a million instructions of one program: of this one three fit, four do not.
func TestFourCostlyAreTooMuch(t *testing.T) {
	both(t, func(t *testing.T, typ ebpf.ProgramType, pass int32) {
		log := find(t, typ, "costly", pass).Programs["costly"].VerifierLog
		processed := regexp.MustCompile(`processed (\d+) insns`).FindStringSubmatch(log)
		if processed == nil {
			t.Fatalf("no number of instructions in the verifier's log:\n%s", log)
		}
		n, err := strconv.Atoi(processed[1])
		if err != nil {
			t.Fatal(err)
		}
		if n <= 250_000 || n > 333_000 {
			t.Errorf("the verifier processed %d instructions, want 250,001 to 333,000", n)
		}
	})
}

func TestLongBodyIsLeftEarlyAndLate(t *testing.T) {
	l := find(t, ebpf.XDP, "long_body", xdpPass)
	l.run(t, frame(64))
	if got := l.result(t); got != (members.Result{Packets: 1}) {
		t.Errorf("early: got %+v", got)
	}
	l.run(t, frame(65))
	want := uint64(65)
	for range 17000 {
		want = (want ^ 0x5eed) * 3
	}
	if got := l.result(t); got != (members.Result{Packets: 2, Value: want}) {
		t.Errorf("late: got %+v, want value %d", got, want)
	}

	var exits []asm.RawInstructionOffset
	insns := parse(t, members.Long()).Programs["long_body"].Instructions
	for i := insns.Iterate(); i.Next(); {
		if i.Ins.OpCode.JumpOp() == asm.Exit {
			exits = append(exits, i.Offset)
		}
	}
	if len(exits) != 2 || exits[1]-exits[0] <= 1<<15 {
		t.Errorf("exits are at %v, want two more than %d apart", exits, 1<<15)
	}
}

func TestMapsAreMoreThanOneProgramCanUse(t *testing.T) {
	sum := 0
	for _, program := range []string{"maps_a", "maps_b", "maps_c", "maps_d"} {
		l := find(t, ebpf.XDP, program, xdpPass)
		l.run(t, frame(64))
		for name, m := range l.Maps {
			if name == ".rodata" {
				continue
			}
			sum++
			if got := members.ReadResult(t, m).Packets; got != 1 {
				t.Errorf("%s: got %d packets in map %s, want 1", program, got, name)
			}
		}
	}
	if sum != 80 {
		t.Errorf("got %d maps, want 80", sum)
	}
}

func TestFunctionsAreMoreThanOneProgramCanHave(t *testing.T) {
	sum := 0
	for _, program := range []string{"functions_a", "functions_b", "functions_c"} {
		insns := parse(t, members.Functions()).Programs[program].Instructions
		sum += 1 + len(insns.FunctionReferences())
	}
	if want := 3 * 91; sum != want {
		t.Errorf("got %d functions, want %d", sum, want)
	}
}

func TestNoBTFHasNoBTF(t *testing.T) {
	if parse(t, members.NoBTF()).Types != nil {
		t.Error("the object has BTF")
	}
	l := find(t, ebpf.XDP, "nobtf", xdpPass)
	info, err := l.Programs["nobtf"].Info()
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := info.BTFID(); ok {
		t.Errorf("the program has BTF %d", id)
	}
}

func TestProprietaryIsNotGPL(t *testing.T) {
	for _, prog := range parse(t, members.Proprietary()).Programs {
		if prog.License != "Proprietary" {
			t.Errorf("%s: got license %q", prog.Name, prog.License)
		}
	}
}

func TestTwinsHaveTheSameNamesOnly(t *testing.T) {
	a, b := parse(t, members.TwinA()), parse(t, members.TwinB())
	names := func(spec *ebpf.CollectionSpec) map[string]bool {
		all := map[string]bool{}
		for name, prog := range spec.Programs {
			all["program "+name] = true
			for function := range prog.Instructions.FunctionReferences() {
				all["function "+fmt.Sprint(function)] = true
			}
		}
		for name := range spec.Maps {
			all["map "+name] = true
		}
		return all
	}
	if got, want := fmt.Sprint(names(b)), fmt.Sprint(names(a)); got != want {
		t.Errorf("twin b has %s, a has %s", got, want)
	}
	both(t, func(t *testing.T, typ ebpf.ProgramType, pass int32) {
		name := map[ebpf.ProgramType]string{ebpf.XDP: "twin", ebpf.SchedCLS: "twin_tc"}[typ]
		a := members.Find(t, typ, name)
		b := a
		b.Object = members.TwinB
		for m, want := range map[*members.Member]uint64{&a: 11, &b: 1100} {
			l := load(t, *m, pass)
			l.run(t, frame(64))
			if got := l.result(t).Value; got != want {
				t.Errorf("got %d, want %d", got, want)
			}
		}
	})
}
