// SPDX-License-Identifier: Apache-2.0

package mapjson

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// TestForms holds how each type looks, in the kernel and in Go.
func TestForms(t *testing.T) {
	bpftest.Root(t)
	le := binary.LittleEndian
	word := func(v uint32) []byte { return le.AppendUint32(nil, v) }
	long := func(v uint64) []byte { return le.AppendUint64(nil, v) }
	state := &btf.Enum{Name: "state", Size: 4, Signed: true, Values: []btf.EnumValue{{Name: "DOWN", Value: 0}, {Name: "UP", Value: 1}, {Name: "BAD", Value: 1<<64 - 1}, {Name: "OK", Value: 1}}}
	wide := &btf.Enum{Name: "wide", Size: 8, Values: []btf.EnumValue{{Name: "HIGH", Value: 1 << 63}, {Name: "LOW", Value: 1}}}
	for _, c := range []struct {
		name string
		t    btf.Type
		raw  []byte
		want string
	}{
		{"u64", u64, long(1<<64 - 1), `18446744073709551615`},
		{"s32", i32, word(1 << 31), `-2147483648`},
		{"char", char, []byte{0xff}, `-1`},
		{"bool", flag, []byte{2}, `true`},
		{"enum", state, word(1), `"UP"`},
		{"negative enum", state, word(1<<32 - 1), `"BAD"`},
		{"unnamed enum", state, word(1<<32 - 2), `-2`},
		{"64-bit enum", wide, long(1 << 63), `"HIGH"`},
		{"unnamed 64-bit enum", wide, long(1<<63 + 1), `9223372036854775809`},
		{"empty enum", &btf.Enum{Size: 4}, word(7), `7`},
		{"be16", &btf.Typedef{Name: "__be16", Type: u16}, []byte{0x01, 0xbb}, `443`},
		{"be32", &btf.Typedef{Name: "__be32", Type: u32}, []byte{10, 0, 0, 1}, `"10.0.0.1"`},
		{"be64", &btf.Typedef{Name: "__be64", Type: u64}, []byte{0, 0, 0, 0, 0, 0, 1, 0}, `256`},
		{"in6", in6, []byte{0x20, 1, 0xd, 0xb8, 15: 1}, `"2001:db8::1"`},
		{"pointer", &btf.Pointer{Target: u8}, long(0xffff888000000000), `"0xffff888000000000"`},
		{"float", &btf.Float{Name: "float", Size: 4}, []byte{1, 2, 3, 4}, `"0x01020304"`},
		{"128 bits", &btf.Int{Name: "__int128", Size: 16}, append(long(1), long(2)...), `"0x01000000000000000200000000000000"`},
		{"text", &btf.Array{Type: char, Nelems: 8}, []byte("nginx\x00\"x"), `"nginx"`},
		{"full text", &btf.Array{Type: char, Nelems: 8}, []byte("nginx-eu"), `"nginx-eu"`},
		{"text in hex", &btf.Array{Type: char, Nelems: 4}, []byte("a\"b\x00"), `"0x61226200"`},
		{"bytes", &btf.Array{Type: u8, Nelems: 3}, []byte("abc"), `[97,98,99]`},
		{"texts", &btf.Array{Type: &btf.Array{Type: char, Nelems: 2}, Nelems: 2}, []byte("abc\x00"), `["ab","c"]`},
		{"anonymous members", &btf.Struct{Size: 8, Members: []btf.Member{
			{Name: "a", Type: u32},
			{Type: &btf.Union{Size: 4, Members: []btf.Member{{Name: "b", Type: u32}, {Name: "c", Type: u16}}}, Offset: 32},
		}}, append(word(1), word(0x20003)...), `{"a":1,"b":131075,"c":3}`},
		{"bit-fields", &btf.Struct{Size: 4, Members: []btf.Member{
			{Name: "a", Type: u32, BitfieldSize: 3},
			{Name: "b", Type: i32, Offset: 3, BitfieldSize: 2},
			{Name: "c", Type: state, Offset: 5, BitfieldSize: 2},
			{Name: "d", Type: flag, Offset: 7, BitfieldSize: 1},
			{Name: "e", Type: u32, Offset: 8, BitfieldSize: 20},
		}}, word(0b1_11_10_101 | 0xabcde<<8), `{"a":5,"b":-2,"c":"BAD","d":true,"e":703710}`},
		{"flexible array", &btf.Struct{Size: 4, Members: []btf.Member{{Name: "n", Type: u32}, {Name: "data", Type: &btf.Array{Type: u32}, Offset: 32}}}, word(3), `{"n":3,"data":[]}`},
		{"data section", &btf.Datasec{Size: 8, Vars: []btf.VarSecinfo{{Type: &btf.Var{Name: "limit", Type: u32}, Size: 4}, {Type: &btf.Var{Name: "on", Type: flag}, Offset: 4, Size: 1}}}, append(word(9), 1, 0, 0, 0), `{"limit":9,"on":true}`},
		{"no BTF", nil, []byte{0xde, 0xad, 0, 1, 2}, `"0xdead000102"`},
		{"BTF of another size", u32, []byte{1, 2}, `"0x0102"`},
		{"member outside", &btf.Struct{Size: 4, Members: []btf.Member{{Name: "x", Type: u64}}}, word(1), `"0x01000000"`},
		{"no layout", &btf.Struct{Size: 4, Members: []btf.Member{{Name: "x", Type: &btf.Fwd{Name: "f"}}}}, word(1), `"0x01000000"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := string(Append(nil, c.t, c.raw)); got != c.want {
				t.Errorf("Go: got %s, want %s", got, c.want)
			}
			spec := MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(c.raw)), Value: c.t}
			m := newMap(t, spec, 1)
			put(t, m, make([]byte, 4), [][]byte{c.raw})
			if got, want := cat(t, attach(t, m, spec)), `{"key":0,"value":`+c.want+"}\n"; got != want {
				t.Errorf("kernel: got %s, want %s", got, want)
			}
		})
	}
}

// TestCompiledTypes prints the maps of an object that clang made.
func TestCompiledTypes(t *testing.T) {
	object, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpf.Types()))
	if err != nil {
		t.Fatal(err)
	}
	printed := 0
	for name, m := range object.Maps {
		spec := MapSpec{Name: name, Type: m.Type, KeySize: m.KeySize, ValueSize: m.ValueSize, Key: m.Key, Value: m.Value}
		if _, err := Iterator(spec); errors.Is(err, ErrNoIterator) {
			continue
		}
		printed++
		g := &generator{Rand: rand.New(rand.NewPCG(1, 2))}
		key, values := make([]byte, m.KeySize), [][]byte{g.bytes(int(m.ValueSize))}
		for perCPU(m.Type) && len(values) < ebpf.MustPossibleCPU() {
			values = append(values, g.bytes(int(m.ValueSize)))
		}
		data := newMap(t, spec, 1)
		put(t, data, key, values)
		got := cat(t, attach(t, data, spec))
		if diff := cmp.Diff(string(NewLine(spec).Append(nil, key, values...)), got); diff != "" {
			t.Errorf("%s: kernel and Go differ (-Go +kernel):\n%s", name, diff)
		}
		t.Logf("%s: %s", name, got)
	}
	if printed < 6 {
		t.Errorf("%d maps printed, want one of each type at least", printed)
	}
}

// same compares kernel and Go over many values of one type.
func same(t *testing.T, value btf.Type, raws [][]byte) {
	t.Helper()
	spec := MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(raws[0])), Value: value}
	m := newMap(t, spec, uint32(len(raws)))
	line := NewLine(spec)
	var want []byte
	for i, raw := range raws {
		key := binary.LittleEndian.AppendUint32(nil, uint32(i))
		put(t, m, key, [][]byte{raw})
		want = line.Append(want, key, raw)
	}
	if diff := cmp.Diff(string(want), cat(t, attach(t, m, spec))); diff != "" {
		t.Errorf("kernel and Go differ (-Go +kernel):\n%s", diff)
	}
}

// TestTextEnds has each byte at places where words and pieces of text begin and end.
func TestTextEnds(t *testing.T) {
	for _, size := range []int{1, 7, 8, 9, 16, 127, 128, 129, 136, 300} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			raws := [][]byte{bytes.Repeat([]byte{'x'}, size), make([]byte, size)}
			for _, at := range []int{0, 6, 7, 8, 126, 127, 128, size - 1} {
				for c := range 256 {
					raw := bytes.Repeat([]byte{'~'}, size)
					if at < size {
						raw[at] = byte(c)
						raws = append(raws, raw)
					}
				}
			}
			same(t, &btf.Array{Type: char, Nelems: uint32(size)}, raws)
		})
	}
}

// TestIPv6 has each set of zero groups, and mapped IPv4 addresses.
func TestIPv6(t *testing.T) {
	var raws [][]byte
	for zeros := range 256 {
		for _, group := range []uint16{1, 0xfff, 0xffff} {
			var raw []byte
			for i := range 8 {
				raw = binary.BigEndian.AppendUint16(raw, group*uint16(1-zeros>>i&1))
			}
			raws = append(raws, raw)
		}
	}
	raws = append(raws, []byte{10: 0xff, 0xff, 192, 0, 2, 1}, []byte{10: 0xff, 0xff, 15: 0}, []byte{9: 1, 0xff, 0xff, 192, 0, 2, 1})
	same(t, in6, raws)
}
