// SPDX-License-Identifier: Apache-2.0

package mapjson

import "fmt"

// Limits of what the kernel prints and verifies.
const (
	// maxLine is what bpf_seq_read's buffer holds: 8 pages less the NUL (kernel/bpf/bpf_iter.c).
	maxLine = 8*4096 - 1
	// maxElement keeps offsets within an instruction's 16 bits, also those of the second of two values.
	maxElement = 1<<14 - 1
	// maxVerified bounds the instructions that the verifier walks, by an estimate; it takes about a millisecond for 1,000.
	maxVerified = 150_000
	// maxProgram keeps jumps within an instruction's 16 bits.
	maxProgram = 1<<15 - 1
	// maxPool bounds formats and names, and is a power of two: the program masks offsets with it.
	maxPool = 1 << 20
)

// checkLimits refuses what the kernel could not print whole, before it is made.
func checkLimits(key, value *node) error {
	c := key.cost()
	v := value.cost()
	const frame = len(`{"key":,"value":}` + "\n")
	element := max(key.size, value.size)
	if value.kind == kindArray {
		element = max(key.size, value.stride)
	}
	switch {
	case c.line+v.line+frame > maxLine:
		return fmt.Errorf("%w: a line could take %d bytes, the kernel prints at most %d", ErrTooWide, c.line+v.line+frame, maxLine)
	case c.verified+v.verified > maxVerified:
		return fmt.Errorf("%w: its program would have about %d instructions to verify, the limit is %d", ErrTooWide, c.verified+v.verified, maxVerified)
	case element > maxElement || max(c.loops, v.loops) > maxLoops:
		return fmt.Errorf("%w: elements of %d bytes, arrays nested %d deep", ErrTooWide, element, max(c.loops, v.loops))
	}
	return nil
}

// cost is what printing a node takes at most.
type cost struct {
	line     int // bytes
	verified int // instructions, about
	loops    int // nesting
}

func (n *node) cost() cost {
	switch n.kind {
	case kindUint, kindInt:
		return cost{line: 20, verified: 10}
	case kindBool:
		return cost{line: 5, verified: 14}
	case kindPointer:
		return cost{line: 20, verified: 6}
	case kindIPv4:
		return cost{line: 17, verified: 6}
	case kindIPv6:
		return cost{line: 47, verified: 400}
	case kindEnum:
		c := cost{line: max(20, n.enum.longest), verified: 40}
		if n.enum.width == 0 {
			c.verified += 12 * len(n.enum.values)
		}
		return c
	case kindText:
		c := hexBytes(n.size).cost()
		c.verified += n.size * 6
		if n.size > maxShort {
			c.verified += n.size * 10
		}
		c.loops = 1
		return c
	case kindObject:
		c := cost{line: 2}
		for _, f := range n.fields {
			inner := f.node.cost()
			c.line += len(f.name) + len(`:,`) + inner.line
			c.verified += inner.verified
			c.loops = max(c.loops, inner.loops)
		}
		return c
	case kindArray:
		inner := n.elem.cost()
		return cost{
			line:     2 + n.n*(inner.line+1),
			verified: n.n * (inner.verified + 8),
			loops:    inner.loops + 1,
		}
	}
	return cost{line: 4 + 2*n.size, verified: n.size + 20, loops: 1}
}
