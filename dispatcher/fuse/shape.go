// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/asm"
)

// Shape is what decides whether and how code fits into a program with others.
type Shape struct {
	Instructions int  // units of 8 bytes
	Body         int  // of them, the program's own function
	Functions    int  // beside the program's own
	Maps         int  // that the instructions load
	Frame        int  // bytes of stack of the program's own function
	Calls        int  // bytes of stack of the deepest chain of calls from there
	TailCalls    bool // it tail-calls
	LegacyLoads  bool // it loads by LD_ABS or LD_IND, which may end the program
}

// Shape reads the code. Without Frames, stack is what the instructions show, without following them: it may be too much
// where an array is indexed by a variable.
func (c *Code) Shape() Shape {
	s := Shape{Functions: len(c.Functions) - 1, Maps: len(c.Maps)}
	frames := map[int]int{}
	calls := map[int][]int{}
	function, f := 0, frame{}
	at := 0
	for i := range c.Instructions {
		ins := &c.Instructions[i]
		if c.Functions[at] != "" && at > 0 {
			frames[function] = f.depth
			function, f = at, frame{}
		}
		if function == 0 {
			s.Body += width(ins)
		}
		f.step(ins)
		switch {
		case ins.IsFunctionReference():
			if to, ok := target(ins, at); ok && !slices.Contains(calls[function], to) {
				calls[function] = append(calls[function], to)
			}
		case ins.IsBuiltinCall() && asm.BuiltinFunc(ins.Constant) == asm.FnTailCall:
			s.TailCalls = true
		case isLegacyLoad(ins):
			s.LegacyLoads = true
		}
		at += width(ins)
	}
	frames[function] = f.depth
	for i, function := range slices.Sorted(maps.Keys(c.Functions)) {
		if len(c.Frames) == len(c.Functions) {
			frames[function] = c.Frames[i]
		}
	}
	s.Instructions, s.Frame = at, frames[0]
	s.Calls = deepest(0, calls, frames, map[int]int{})
	return s
}

var stackDepth = regexp.MustCompile(`(?m)^stack depth ([0-9]+(?:\+[0-9]+)*)`)

// ParseFrames reads the verifier's statistics (ebpf.LogLevelStats) of the program that Spec makes.
func (c *Code) ParseFrames(log string) error {
	found := stackDepth.FindStringSubmatch(log)
	if found == nil {
		return fmt.Errorf("verifier's statistics: no stack depth")
	}
	var frames []int
	for _, digits := range strings.Split(found[1], "+") {
		depth, err := strconv.Atoi(digits)
		if err != nil || depth > maxStack {
			return fmt.Errorf("verifier's statistics: stack depth %.16q", digits)
		}
		frames = append(frames, depth)
	}
	if len(frames) != len(c.Functions) {
		return fmt.Errorf("verifier's statistics: stack depth of %d functions, want %d", len(frames), len(c.Functions))
	}
	c.Frames = frames
	return nil
}

func isLegacyLoad(ins *asm.Instruction) bool {
	return ins.OpCode.Class() == asm.LdClass && (ins.OpCode.Mode() == asm.AbsMode || ins.OpCode.Mode() == asm.IndMode)
}

// deepest is the stack of the deepest chain of calls from a function, without its own. The verifier refuses recursion;
// here it counts once.
func deepest(function int, calls map[int][]int, frames, known map[int]int) int {
	if depth, ok := known[function]; ok {
		return depth
	}
	known[function] = 0
	most := 0
	for _, to := range calls[function] {
		most = max(most, frameSize(frames[to])+deepest(to, calls, frames, known))
	}
	known[function] = most
	return most
}

// frameSize is what a frame of some depth takes of the stack (check_max_stack_depth of kernel/bpf/verifier.c).
func frameSize(depth int) int { return (max(depth, 1) + 31) &^ 31 }

// frame finds how deep the stack of a function is used: compilers address it by constants from the frame pointer.
type frame struct {
	depth int
	known [11]bool // registers that hold an address on the stack
	base  [11]int  // which one, from the frame pointer
}

func (f *frame) touch(offset int) { f.depth = max(f.depth, min(-offset, maxStack)) }

func (f *frame) address(r asm.Register) (int, bool) {
	if r == asm.RFP {
		return 0, true
	}
	if r > asm.R9 {
		return 0, false
	}
	return f.base[r], f.known[r]
}

func (f *frame) step(ins *asm.Instruction) {
	op := ins.OpCode
	switch op.Class() {
	case asm.StClass, asm.StXClass:
		if base, ok := f.address(ins.Dst); ok {
			f.touch(base + int(ins.Offset))
		}
		return
	case asm.LdXClass:
		if base, ok := f.address(ins.Src); ok {
			f.touch(base + int(ins.Offset))
		}
	case asm.JumpClass, asm.Jump32Class:
		if op.JumpOp() == asm.Call {
			for r := asm.R0; r <= asm.R5; r++ {
				f.known[r] = false
			}
		}
		return
	case asm.ALU64Class:
		if ins.Dst > asm.R9 {
			return
		}
		base, ok := f.address(ins.Src)
		switch {
		case op.ALUOp() == asm.Mov && op.Source() == asm.RegSource && ok:
			f.known[ins.Dst], f.base[ins.Dst] = true, base
			return
		case op.ALUOp() == asm.Add && op.Source() == asm.ImmSource && f.known[ins.Dst]:
			f.base[ins.Dst] += int(ins.Constant)
			f.touch(f.base[ins.Dst])
			return
		case op.ALUOp() == asm.Add && f.known[ins.Dst]:
			return // a distance from the start of an object, which was counted
		}
	}
	if ins.Dst <= asm.R9 {
		f.known[ins.Dst] = false
	}
}
