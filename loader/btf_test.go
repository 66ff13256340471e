// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// withPointers gives an object so many types: its own, and then a pointer to a pointer to a pointer.
func withPointers(t *testing.T, object []byte, types int) []byte {
	t.Helper()
	object = bytes.Clone(object)
	file, header := sectionHeader(t, object, ".BTF")
	defer file.Close()
	raw, err := file.Section(".BTF").Data()
	if err != nil {
		t.Fatal(err)
	}
	order := binary.LittleEndian
	end := order.Uint32(raw[4:]) + order.Uint32(raw[12:]) // of the types; the strings follow
	more := new(bytes.Buffer)
	more.Write(raw[:end])
	const pointer = 2 << 24
	for id := countTypes(raw, order) + 1; id < types; id++ {
		more.Write(order.AppendUint32(order.AppendUint32(order.AppendUint32(nil, 0), pointer), uint32(id+1)))
	}
	more.Write(order.AppendUint32(order.AppendUint32(order.AppendUint32(nil, 0), pointer), 0))
	grown := uint32(more.Len()) - end
	more.Write(raw[end:])
	btf := more.Bytes()
	order.PutUint32(btf[12:], order.Uint32(raw[12:])+grown)
	order.PutUint32(btf[16:], order.Uint32(raw[16:])+grown)
	// sh_offset and sh_size (elf(5))
	order.PutUint64(header[24:], uint64(len(object)))
	order.PutUint64(header[32:], uint64(len(btf)))
	return append(object, btf...)
}

// A stack that overflows ends the process: so this test, where it fails, may be the last one.
func TestChainOfTypesDoesNotEndTheProcess(t *testing.T) {
	o, err := parse(withPointers(t, bpf.Count(), maxTypes), volume.Spec{Attach: attach(t, "{program: count, xdp: eth0}")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.TypesBTF(); err != nil {
		t.Error(err)
	}
	for _, types := range []int{maxTypes + 1, 600_000} {
		_, err := parse(withPointers(t, bpf.Count(), types), volume.Spec{Attach: attach(t, "{program: count, xdp: eth0}")})
		wantError(t, err, ErrInvalid, fmt.Sprintf("object: %d BTF types are over the limit of %d; strip types that no program uses", types, maxTypes))
	}
}
