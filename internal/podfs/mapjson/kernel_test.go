// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestMain(m *testing.M) { bpftest.Main(m) }

// types is shared as in production: loading the kernel's BTF takes longer than all the rest.
var types = btf.NewCache()

// attach loads and attaches the iterator of a map.
func attach(t testing.TB, m *ebpf.Map, spec MapSpec) *link.Iter {
	t.Helper()
	it, err := tryAttach(m, spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { it.Close() })
	return it
}

func tryAttach(m *ebpf.Map, spec MapSpec) (*link.Iter, error) {
	cs, err := Iterator(spec)
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(cs, ebpf.CollectionOptions{Cache: types})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return link.AttachIter(link.IterOptions{Program: coll.Programs[ProgramName], Map: m})
}

// cat reads what the kernel prints.
func cat(t testing.TB, it *link.Iter) string {
	t.Helper()
	r, err := it.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read: %v, after %q", err, b)
	}
	return string(b)
}

// newMap makes the map that a spec describes.
func newMap(t testing.TB, spec MapSpec, entries uint32) *ebpf.Map {
	t.Helper()
	bpftest.Root(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "data", Type: spec.Type, KeySize: spec.KeySize, ValueSize: spec.ValueSize, MaxEntries: entries})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// put stores one element.
func put(t testing.TB, m *ebpf.Map, key []byte, values [][]byte) {
	t.Helper()
	var value any = values
	if !perCPU(m.Type()) {
		value = values[0]
	}
	if err := m.Put(key, value); err != nil {
		t.Fatal(err)
	}
}

// typed returns the spec of a map with these types.
func typed(t testing.TB, mt ebpf.MapType, key, value btf.Type) MapSpec {
	t.Helper()
	ks, err := btf.Sizeof(key)
	if err != nil {
		t.Fatal(err)
	}
	vs, err := btf.Sizeof(value)
	if err != nil {
		t.Fatal(err)
	}
	return MapSpec{Name: "data", Type: mt, KeySize: uint32(ks), ValueSize: uint32(vs), Key: key, Value: value}
}

// TestKernelPrintsWhatGoPrints holds the format: random types, random bytes, every type of map.
func TestKernelPrintsWhatGoPrints(t *testing.T) {
	bpftest.Root(t)
	cpus := ebpf.MustPossibleCPU()
	kinds := []ebpf.MapType{ebpf.Hash, ebpf.LRUHash, ebpf.Array, ebpf.PerCPUHash, ebpf.PerCPUArray, ebpf.LRUCPUHash}
	refused := 0
	for seed := range uint64(300) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, 1))}
		spec := MapSpec{Name: "data", Type: kinds[seed%uint64(len(kinds))]}
		array := spec.Type == ebpf.Array || spec.Type == ebpf.PerCPUArray
		spec.Key = g.sized(1, 64)
		if array {
			spec.Key = u32
		}
		spec.Value = g.sized(1, 2000)
		spec = typed(t, spec.Type, spec.Key, spec.Value)
		if g.IntN(20) == 0 {
			spec.Value = nil
		}
		if g.IntN(20) == 0 {
			spec.Key = nil
		}
		const entries = 4
		t.Run(fmt.Sprintf("%d %s", seed, spec.Type), func(t *testing.T) {
			room := uint32(entries)
			if spec.Type == ebpf.LRUHash || spec.Type == ebpf.LRUCPUHash {
				room = 4096 // a small one evicts early: each CPU keeps free elements to itself
			}
			m := newMap(t, spec, room)
			line := NewLine(spec)
			byKey := map[string]string{}
			for i := range entries {
				key := g.bytes(int(spec.KeySize))
				if array {
					binary.LittleEndian.PutUint32(key, uint32(i))
				}
				var values [][]byte
				for len(values) == 0 || perCPU(spec.Type) && len(values) < cpus {
					values = append(values, g.bytes(int(spec.ValueSize)))
				}
				put(t, m, key, values)
				byKey[string(key)] = string(line.Append(nil, key, values...))
			}
			want := map[string]bool{}
			for _, l := range byKey {
				want[l] = true
			}
			it, err := tryAttach(m, spec)
			if errors.Is(err, ErrTooWide) {
				refused++
				return
			}
			if err != nil {
				t.Fatalf("%+v\nvalue: %s", err, cText(spec.Value))
			}
			defer it.Close()
			got := map[string]bool{}
			for l := range strings.Lines(cat(t, it)) {
				got[l] = true
				if !json.Valid([]byte(l)) {
					t.Errorf("not JSON: %s", l)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("kernel and Go differ (-Go +kernel):\n%s", diff)
			}
		})
	}
	if refused > 60 {
		t.Errorf("%d of 300 types refused, few expected", refused)
	}
}

func cText(t btf.Type) string { return fmt.Sprintf("%+60v", t) }

// generator makes types and bytes.
type generator struct {
	*rand.Rand
	depth, members int
}

var (
	u8   = &btf.Int{Name: "unsigned char", Size: 1}
	u16  = &btf.Int{Name: "unsigned short", Size: 2}
	u32  = &btf.Int{Name: "unsigned int", Size: 4}
	u64  = &btf.Int{Name: "unsigned long long", Size: 8}
	i32  = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	char = &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
	flag = &btf.Int{Name: "_Bool", Size: 1, Encoding: btf.Bool}
	in6  = &btf.Struct{Name: "in6_addr", Size: 16, Members: []btf.Member{{Name: "u6_addr8", Type: &btf.Array{Type: u8, Nelems: 16}}}}
)

// sized returns a type of a size between the bounds.
func (g *generator) sized(lowest, highest int) btf.Type {
	for {
		g.members = 30
		t := g.any()
		if size, err := btf.Sizeof(t); err == nil && size >= lowest && size <= highest {
			return t
		}
	}
}

func (g *generator) any() btf.Type {
	g.depth++
	defer func() { g.depth-- }()
	n := 20
	if g.depth > 5 {
		n = 14
	}
	switch g.IntN(n) {
	case 0, 1:
		return &btf.Int{Name: "u", Size: 1 << g.IntN(5)}
	case 2, 3:
		return &btf.Int{Name: "i", Size: 1 << g.IntN(4), Encoding: btf.Signed}
	case 4:
		return flag
	case 5:
		return g.enum()
	case 6:
		return &btf.Pointer{Target: &btf.Void{}}
	case 7:
		return &btf.Float{Name: "double", Size: 8}
	case 8:
		return in6
	case 9:
		return &btf.Typedef{Name: "__be32", Type: &btf.Typedef{Name: "__u32", Type: u32}}
	case 10:
		return &btf.Typedef{Name: "port", Type: &btf.Typedef{Name: "__be16", Type: u16}}
	case 11:
		return &btf.Const{Type: &btf.Typedef{Name: "__be64", Type: u64}}
	case 12, 13:
		sizes := []uint32{0, 1, 3, 7, 8, 9, 16, 64, 100, 127, 128, 129, 136, 137, 300}
		return &btf.Array{Index: u32, Type: char, Nelems: sizes[g.IntN(len(sizes))]}
	case 14, 15:
		counts := []uint32{0, 1, 2, 3, 5, 12, 13, 24, 25, 26, 40}
		return &btf.Array{Index: u32, Type: g.any(), Nelems: counts[g.IntN(len(counts))]}
	case 16:
		return g.union()
	}
	return g.structure()
}

func (g *generator) enum() btf.Type {
	e := &btf.Enum{Name: "e", Size: 1 << g.IntN(4), Signed: g.IntN(2) == 0}
	step := []uint64{1, 1, 3, 1 << 20, 1 << 40}[g.IntN(5)]
	for i := range g.IntN(12) {
		e.Values = append(e.Values, btf.EnumValue{Name: fmt.Sprintf("NAME_%d", i), Value: (uint64(i) - 3) * step})
	}
	return e
}

func (g *generator) union() btf.Type {
	u := &btf.Union{Name: "u"}
	for i := range 1 + g.IntN(3) {
		m := btf.Member{Name: fmt.Sprintf("m%d", i), Type: g.any()}
		size, _ := btf.Sizeof(m.Type)
		u.Size = max(u.Size, uint32(size))
		u.Members = append(u.Members, m)
	}
	return u
}

// structure is packed half of the time, and has bit-fields and anonymous members.
func (g *generator) structure() btf.Type {
	s := &btf.Struct{Name: "s"}
	packed := g.IntN(2) == 0
	bits := uint32(0)
	for i := range g.IntN(7) {
		if g.members--; g.members < 0 {
			break
		}
		m := btf.Member{Name: fmt.Sprintf("m%d", i)}
		if g.IntN(4) == 0 {
			m.Type = []btf.Type{u64, i32, flag, &btf.Int{Name: "long", Size: 8, Encoding: btf.Signed}, g.enum()}[g.IntN(5)]
			m.BitfieldSize = btf.Bits(1 + g.IntN(64))
			m.Offset = btf.Bits(bits)
			bits += uint32(m.BitfieldSize)
			s.Members = append(s.Members, m)
			continue
		}
		bits = (bits + 7) &^ 7
		if !packed {
			bits = (bits + 63) &^ 63
		}
		m.Type = g.any()
		switch m.Type.(type) {
		case *btf.Struct, *btf.Union:
			if m.Type != btf.Type(in6) && g.IntN(3) == 0 {
				m.Name = ""
			}
		}
		m.Offset = btf.Bits(bits)
		size, _ := btf.Sizeof(m.Type)
		bits += uint32(size) * 8
		s.Members = append(s.Members, m)
	}
	s.Size = (bits + 7) / 8
	return s
}

// bytes mixes noise, zeros and text, so that each form of a type is seen.
func (g *generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; {
		run, what := 1+g.IntN(40), g.IntN(6)
		for ; run > 0 && i < n; run-- {
			switch what {
			case 0:
				b[i] = byte(g.Uint32())
			case 1: // zeros
			case 2:
				b[i] = byte(g.IntN(4))
			case 3:
				b[i] = 0xff
			default:
				b[i] = byte(0x20 + g.IntN(0x5f))
				if (b[i] == '"' || b[i] == '\\') && g.IntN(4) > 0 {
					b[i] = 'a'
				}
			}
			i++
		}
	}
	return b
}

func TestWidestLine(t *testing.T) {
	// Every byte of the longest line that is allowed, printed.
	n := uint32((maxLine - len(`{"key":4294967295,"value":["0xffffffffffffffff"]}`)) / 21)
	spec := typed(t, ebpf.Array, u32, &btf.Array{Type: u64, Nelems: n})
	m := newMap(t, spec, 2)
	value := bytes.Repeat([]byte{0xff}, int(spec.ValueSize))
	for i := range uint32(2) {
		put(t, m, binary.LittleEndian.AppendUint32(nil, i), [][]byte{value})
	}
	got := cat(t, attach(t, m, spec))
	line := NewLine(spec)
	want := string(line.Append(line.Append(nil, make([]byte, 4), value), []byte{1, 0, 0, 0}, value))
	if got != want {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
}

func TestTooWide(t *testing.T) {
	enum := &btf.Enum{Name: "flags", Size: 8}
	for i := range 64 {
		enum.Values = append(enum.Values, btf.EnumValue{Name: fmt.Sprint("F", i), Value: 1 << i})
	}
	for name, value := range map[string]btf.Type{
		"line":        &btf.Array{Type: u64, Nelems: 1600},
		"verifier":    &btf.Array{Type: enum, Nelems: 1400},
		"hole":        &btf.Struct{Size: 1 << 20, Members: []btf.Member{{Name: "a", Type: u8}}},
		"recursion":   &btf.Array{Type: &btf.Array{Type: &btf.Array{Type: u64, Nelems: 1000}, Nelems: 1000}, Nelems: 1000},
		"dimensions":  dimensions(12),
		"empty array": &btf.Array{Type: &btf.Struct{}, Nelems: 30000},
	} {
		_, err := Iterator(MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(sizeof(value)), Key: u32, Value: value})
		if !errors.Is(err, ErrTooWide) {
			t.Errorf("%s: got %v, want ErrTooWide", name, err)
		}
	}
}

func dimensions(n int) btf.Type {
	var t btf.Type = u8
	for range n {
		t = &btf.Array{Type: t, Nelems: 1}
	}
	return t
}

// sizeof is btf.Sizeof without its guard against overflow.
func sizeof(t btf.Type) int {
	if a, ok := t.(*btf.Array); ok {
		return sizeof(a.Type) * int(a.Nelems)
	}
	n, _ := btf.Sizeof(t)
	return n
}

func TestNoIterator(t *testing.T) {
	for _, mt := range []ebpf.MapType{ebpf.RingBuf, ebpf.PerfEventArray, ebpf.ProgramArray, ebpf.LPMTrie, ebpf.Queue, ebpf.HashOfMaps, ebpf.SockMap} {
		if _, err := Iterator(MapSpec{Type: mt, KeySize: 4, ValueSize: 4}); !errors.Is(err, ErrNoIterator) {
			t.Errorf("%s: got %v, want ErrNoIterator", mt, err)
		}
	}
}

// TestTextChangesWhileRead has a writer that switches between two texts, one of which needs hex, while the kernel prints.
func TestTextChangesWhileRead(t *testing.T) {
	for _, size := range []uint32{64, 512} {
		spec := typed(t, ebpf.Array, u32, &btf.Array{Type: char, Nelems: size})
		m := newMap(t, spec, 64)
		it := attach(t, m, spec)
		var stop atomic.Bool
		done := make(chan error)
		go func() {
			text := bytes.Repeat([]byte("x"), int(size))
			bad := bytes.Repeat([]byte(`"`), int(size))
			for !stop.Load() {
				for i := range uint32(64) {
					if err := errors.Join(m.Put(i, text), m.Put(i, bad)); err != nil {
						done <- err
						return
					}
				}
			}
			done <- nil
		}()
		for start := time.Now(); time.Since(start) < 300*time.Millisecond; {
			for l := range strings.Lines(cat(t, it)) {
				if !json.Valid([]byte(l)) {
					t.Errorf("not JSON: %s", l)
				}
			}
		}
		stop.Store(true)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestProgramIsSmall holds what an iterator is made of, and that it needs two helpers of Linux 5.7 only.
func TestProgramIsSmall(t *testing.T) {
	value := &btf.Struct{Size: 52, Members: []btf.Member{
		{Name: "name", Type: &btf.Array{Type: char, Nelems: 16}},
		{Name: "comm", Type: &btf.Array{Type: char, Nelems: 16}, Offset: 128},
		{Name: "addr", Type: in6, Offset: 256},
		{Name: "on", Type: flag, Offset: 384},
	}}
	cs, err := Iterator(typed(t, ebpf.PerCPUHash, u32, value))
	if err != nil {
		t.Fatal(err)
	}
	if len(cs.Programs) != 1 || len(cs.Maps) != 1 {
		t.Errorf("%d programs and %d maps, want one of each", len(cs.Programs), len(cs.Maps))
	}
	for _, ins := range cs.Programs[ProgramName].Instructions {
		if ins.IsBuiltinCall() && ins.Constant != int64(asm.FnSeqPrintf) && ins.Constant != int64(asm.FnSeqWrite) {
			t.Errorf("calls %v", ins)
		}
	}
}

// TestHostileTypes has what a few bytes of BTF can ask for. The bytes are printed in hex, at once.
func TestHostileTypes(t *testing.T) {
	self := &btf.Struct{Name: "self", Size: 4}
	self.Members = []btf.Member{{Name: "me", Type: self}}
	loop := &btf.Typedef{Name: "loop"}
	loop.Type = loop
	var nothing btf.Type = &btf.Struct{}
	for range 5 {
		nothing = &btf.Array{Type: nothing, Nelems: 1 << 15} // 2^75 elements, of no size: 0 modulo 2^64
	}
	wide := &btf.Struct{Size: 4}
	for range 10_000 {
		wide.Members = append(wide.Members, btf.Member{Name: "m", Type: u32})
	}
	deep := btf.Type(u32)
	for range 100 {
		deep = &btf.Struct{Size: 4, Members: []btf.Member{{Name: "a", Type: deep}, {Name: "b", Type: deep}}}
	}
	for name, value := range map[string]btf.Type{
		"self":    self,
		"loop":    loop,
		"nothing": &btf.Struct{Size: 4, Members: []btf.Member{{Name: "a", Type: nothing}}},
		"wide":    wide,
		"deep":    deep,
	} {
		if got, want := string(Append(nil, value, []byte{1, 2, 3, 4})), `"0x01020304"`; got != want {
			t.Errorf("%s: got %.100s, want %s", name, got, want)
		}
		if _, err := Iterator(MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, Key: value, Value: value}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileNames(t *testing.T) {
	names := []string{"\"}\n", `\`, "%s%n%llu", "é\x00\x7f", "\xff\xfe", "😀", strings.Repeat("a", 5000), "%pI4"}
	s := &btf.Struct{}
	for _, name := range names {
		e := &btf.Enum{Size: 1, Values: []btf.EnumValue{{Name: name, Value: 1}}}
		s.Members = append(s.Members, btf.Member{Name: name, Type: e, Offset: btf.Bits(8 * s.Size)})
		s.Size++
	}
	spec := typed(t, ebpf.Array, u32, s)
	m := newMap(t, spec, 1)
	value := bytes.Repeat([]byte{1}, len(names))
	put(t, m, make([]byte, 4), [][]byte{value})
	got := cat(t, attach(t, m, spec))
	if want := string(NewLine(spec).Append(nil, make([]byte, 4), value)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !json.Valid([]byte(got)) {
		t.Errorf("not JSON: %s", got)
	}
}
