// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// code makes a program that returns 2 after some instructions of its own.
func code(t testing.TB, insns ...asm.Instruction) *Code {
	t.Helper()
	all := append(asm.Instructions{asm.Mov.Imm(asm.R0, 2).WithSymbol("prog")}, insns...)
	return settle(t, append(all, asm.Return()))
}

func framed(t testing.TB, bytes int16) *Code {
	return code(t, asm.StoreImm(asm.RFP, -bytes, 0, asm.Word))
}

// callee has a frame of its own and calls a function with another.
func callee(t testing.TB, own, called int16) *Code {
	t.Helper()
	return settle(t, asm.Instructions{
		asm.StoreImm(asm.RFP, -own, 0, asm.Word).WithSymbol("prog"),
		asm.Call.Label("helper"),
		asm.Return(),
		asm.StoreImm(asm.RFP, -called, 0, asm.Word).WithSymbol("helper"),
		asm.Mov.Imm(asm.R0, 2),
		asm.Return(),
	})
}

func long(t testing.TB, n int) *Code {
	return code(t, slices.Repeat(asm.Instructions{asm.Mov.Imm(asm.R0, 2)}, n)...)
}

func licensed(c *Code, license string) *Code {
	c.License = license
	return c
}

func flagged(c *Code, flags uint32) *Code {
	c.Flags = flags
	return c
}

func TestPlanSaysWhyAMemberNeedsASlot(t *testing.T) {
	tailCall := code(t, asm.FnTailCall.Call())
	legacy := code(t, asm.LoadAbs(0, asm.Byte))
	small := code(t)
	for name, c := range map[string]struct {
		members []*Code
		options PlanOptions
		want    []string // how each reason begins
	}{
		"nothing special":            {members: []*Code{small, framed(t, 100), small}, want: []string{"", "", ""}},
		"tail call":                  {members: []*Code{small, tailCall}, want: []string{"", "it makes tail calls"}},
		"LD_ABS":                     {members: []*Code{legacy, small}, want: []string{"it loads packet bytes by LD_ABS", ""}},
		"cannot be taken apart":      {members: []*Code{{Name: "prog", Alone: "it is special"}, small}, want: []string{"it is special", ""}},
		"fragments do not matter":    {members: []*Code{flagged(code(t), xdpHasFrags), small}, want: []string{"", ""}},
		"other flags":                {members: []*Code{flagged(code(t), 1), small}, want: []string{"it is loaded with flags 0x1", ""}},
		"room for the context":       {members: []*Code{framed(t, 504), small}, want: []string{"", ""}},
		"no room for the context":    {members: []*Code{framed(t, 512), small}, want: []string{"its stack of 512 bytes leaves no room", ""}},
		"no room for a counter":      {members: []*Code{framed(t, 504), small}, options: PlanOptions{Counted: true}, want: []string{"its stack of 504 bytes", ""}},
		"calls and frames of one":    {members: []*Code{callee(t, 240, 240), small}, want: []string{"", ""}},
		"too deep for itself":        {members: []*Code{callee(t, 256, 256), small}, want: []string{"its stack of 512 bytes leaves no room", ""}},
		"frame of one, calls of two": {members: []*Code{framed(t, 400), callee(t, 8, 200), small}, want: []string{"its stack is too deep", "", ""}},
		"a slot leaves less stack":   {members: []*Code{framed(t, 250), tailCall, framed(t, 200)}, want: []string{"its stack is too deep", "it makes", ""}},
		"long body, old kernel":      {members: []*Code{long(t, 40000), small}, want: []string{"its 40002 instructions are more than a jump", ""}},
		"long body":                  {members: []*Code{long(t, 40000), small}, options: PlanOptions{LongJumps: true}, want: []string{"", ""}},
		"not GPL beside GPL":         {members: []*Code{licensed(code(t), "Proprietary"), small}, want: []string{`its license "Proprietary" is not GPL-compatible`, ""}},
		"none is GPL":                {members: []*Code{licensed(code(t), "Proprietary"), licensed(code(t), "")}, want: []string{"", ""}},
		"not GPL beside a GPL slot":  {members: []*Code{licensed(code(t), "Proprietary"), tailCall}, want: []string{"", "it makes tail calls"}},
	} {
		t.Run(name, func(t *testing.T) {
			var candidates []Candidate
			for _, m := range c.members {
				candidates = append(candidates, Candidate{Code: m})
			}
			got := Plan(candidates, c.options)
			for i := range got {
				if got[i] != c.want[i] && (c.want[i] == "" || !strings.HasPrefix(got[i], c.want[i])) {
					t.Errorf("member %d: %q, want %q", i, got[i], c.want[i])
				}
			}
		})
	}
}

// The members with most of what is scarce give way, and no more of them than needed.
func TestPlanKeepsTheSumWithinLimits(t *testing.T) {
	withMaps := func(first, n int) Candidate {
		c := Candidate{Code: code(t)}
		for i := range n {
			c.MapIDs = append(c.MapIDs, ebpf.MapID(first+i))
		}
		return c
	}
	for name, c := range map[string]struct {
		members []Candidate
		want    []int // that have a slot
	}{
		"64 maps":                     {members: []Candidate{withMaps(0, 30), withMaps(100, 34)}},
		"65 maps":                     {members: []Candidate{withMaps(0, 30), withMaps(100, 35), withMaps(200, 10)}, want: []int{1}},
		"shared maps count once":      {members: []Candidate{withMaps(0, 40), withMaps(0, 40), withMaps(10, 40)}},
		"the program array counts":    {members: []Candidate{withMaps(0, 33), withMaps(100, 31), {Code: code(t, asm.FnTailCall.Call())}}, want: []int{0, 2}},
		"a million instructions":      {members: []Candidate{{Code: code(t), Verified: 500000}, {Code: code(t), Verified: 500000}}},
		"more than a million of them": {members: []Candidate{{Code: code(t), Verified: 300000}, {Code: code(t), Verified: 400000}, {Code: code(t), Verified: 300001}}, want: []int{1}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []int
			for i, why := range Plan(c.members, PlanOptions{}) {
				if why != "" {
					got = append(got, i)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("slots for %v, want %v", got, c.want)
			}
		})
	}
}

func TestPlanBoundsFunctions(t *testing.T) {
	many := asm.Instructions{asm.Mov.Imm(asm.R0, 2).WithSymbol("prog")}
	for i := range 100 {
		many = append(many, asm.Call.Label(fmt.Sprint("f", i)))
	}
	many = append(many, asm.Return())
	for i := range 100 {
		many = append(many, asm.Mov.Imm(asm.R0, 2).WithSymbol(fmt.Sprint("f", i)), asm.Return())
	}
	c := settle(t, many)
	why := Plan([]Candidate{{Code: c}, {Code: code(t)}, {Code: c}, {Code: c}}, PlanOptions{})
	if want := "all members together have more than 256 functions"; why[0] != want || why[1]+why[2]+why[3] != "" {
		t.Errorf("reasons are %q, want %q for the first alone", why, want)
	}
}
