// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"fmt"
	"math"

	"github.com/cilium/ebpf"
)

// Candidate is what Plan must know of a member.
type Candidate struct {
	*Code
	MapIDs   []ebpf.MapID // of Code.Maps
	Verified uint32       // instructions that the verifier looked at when it loaded the program alone; 0: not known
	Refused  string       // why it needs a slot all the same: what the verifier said of an earlier plan
}

// Plan says for each member, in the order they run, why it needs a slot; "" where it can be fused. It depends on the set
// alone, so the same set is made into the same program again. What the verifier thinks of the sum is another question.
func Plan(members []Candidate, o PlanOptions) []string {
	p := plan{members: members, options: o, why: make([]string, len(members)), shapes: make([]Shape, len(members))}
	for i, m := range members {
		p.shapes[i] = m.Shape()
		p.why[i] = p.alone(i)
	}
	p.sameKind()
	for before := -1; before != p.slots(); { // what needs a slot leaves less room to the others
		before = p.slots()
		p.share()
	}
	return p.why
}

// share gives slots to members until the rest fits into one program.
func (p *plan) share() {
	p.fit("the instructions of all members together are too many for the verifier", MaxVerified, p.verified)
	p.fit(fmt.Sprintf("all members together have more than %d maps", MaxMaps), MaxMaps, p.maps)
	p.fit(fmt.Sprintf("all members together have more than %d functions", MaxFunctions), MaxFunctions, p.functions)
	p.stack()
}

// PlanOptions are the properties of the program to be made that bound what fits.
type PlanOptions struct {
	Counted   bool // there are counters
	LongJumps bool // as Set.LongJumps
}

type plan struct {
	members []Candidate
	shapes  []Shape
	options PlanOptions
	why     []string
}

// alone says why a member cannot be fused whatever the others are.
func (p *plan) alone(i int) string {
	m, s := p.members[i], p.shapes[i]
	switch {
	case m.Alone != "":
		return m.Alone
	case m.Refused != "":
		return m.Refused
	case s.TailCalls:
		return "it makes tail calls"
	case s.LegacyLoads:
		return "it loads packet bytes by LD_ABS or LD_IND, which may end the program"
	case m.Flags&^xdpHasFrags != 0:
		return fmt.Sprintf("it is loaded with flags %#x", m.Flags)
	case p.frame(s.Frame)+s.Calls > maxStack:
		return fmt.Sprintf("its stack of %d bytes leaves no room", s.Frame+s.Calls)
	case s.Body > math.MaxInt16 && !p.options.LongJumps:
		return fmt.Sprintf("its %d instructions are more than a jump of this kernel spans", s.Body)
	}
	return ""
}

// frame is the stack that the program's own function takes where the deepest frame of a fused member is depth: it keeps
// the context and the key of a counter below.
func (p *plan) frame(depth int) int {
	depth = (depth+7)&^7 + 8
	if p.options.Counted {
		depth += 8
	}
	return frameSize(depth)
}

// sameKind gives slots to members whose license keeps their instructions apart from those of the others.
func (p *plan) sameKind() {
	gpl := false
	for i, m := range p.members {
		gpl = gpl || p.why[i] == "" && GPLCompatible(m.License)
	}
	for i, m := range p.members {
		if gpl && p.why[i] == "" && !GPLCompatible(m.License) {
			p.why[i] = fmt.Sprintf("its license %.32q is not GPL-compatible and that of others is", m.License)
		}
	}
}

// fit gives slots to the members with most of something until the rest has no more than limit in all.
func (p *plan) fit(why string, limit int, count func() (total int, each []int)) {
	for {
		total, each := count()
		if total <= limit {
			return
		}
		most := -1
		for i, n := range each {
			if p.why[i] == "" && (most < 0 || n > each[most]) {
				most = i
			}
		}
		if most < 0 {
			return
		}
		p.why[most] = why
	}
}

func (p *plan) slots() (n int) {
	for _, why := range p.why {
		if why != "" {
			n++
		}
	}
	return n
}

func (p *plan) verified() (total int, each []int) {
	each = make([]int, len(p.members))
	for i, m := range p.members {
		if p.why[i] == "" {
			each[i] = max(int(m.Verified), p.shapes[i].Instructions)
			total += each[i]
		}
	}
	return total, each
}

func (p *plan) maps() (total int, each []int) {
	each = make([]int, len(p.members))
	seen := map[ebpf.MapID]bool{}
	for i, m := range p.members {
		if p.why[i] != "" {
			continue
		}
		each[i] = len(m.MapIDs)
		for _, id := range m.MapIDs {
			seen[id] = true
		}
	}
	total = len(seen)
	if p.options.Counted {
		total++
	}
	if p.slots() > 0 {
		total++ // the program array
	}
	return total, each
}

func (p *plan) functions() (total int, each []int) {
	each = make([]int, len(p.members))
	total = 1 + p.slots()
	for i, s := range p.shapes {
		if p.why[i] == "" {
			each[i] = s.Functions
			total += s.Functions
		}
	}
	return total, each
}

// stack gives slots to the members with the deepest frames until every chain of calls has room: all fused members share
// the deepest frame, and above a tail call there is less room.
func (p *plan) stack() {
	p.fit("its stack is too deep beside the calls of others", 0, func() (total int, each []int) {
		each = make([]int, len(p.members))
		frame, calls := 0, 0
		for i, s := range p.shapes {
			if p.why[i] == "" {
				each[i] = s.Frame
				frame, calls = max(frame, s.Frame), max(calls, s.Calls)
			}
		}
		size := p.frame(frame)
		if size+calls > maxStack || p.slots() > 0 && size > maxStackAboveTailCall {
			return 1, each
		}
		return 0, each
	})
}
