// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// TestMapsThatNobodyWrites asks for maps to write of which that would be an empty promise, or one that the object's author
// did not make.
func TestMapsThatNobodyWrites(t *testing.T) {
	asked := func(program, name string, access volume.Access) volume.Spec {
		return volume.Spec{Attach: attach(t, "{program: "+program+", xdp: eth0}"), Maps: []volume.MapRef{{Name: name, Access: access}}}
	}
	_, err := parse(bpf.Count(), asked("count", "rodata", volume.ReadWrite))
	wantError(t, err, ErrInvalid, `map "rodata": access rw: constants cannot change once they are loaded; show it read-only, and set variables`)
	// As the text says: the kernel refuses even root.
	c := load(t, mustParse(t, bpf.Count(), asked("count", "rodata", volume.ReadOnly)))
	value, err := c.Maps["rodata"].LookupBytes(uint32(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Maps["rodata"].Put(uint32(0), value); !errors.Is(err, unix.EPERM) {
		t.Errorf("update of constants: %v, want EPERM", err)
	}

	object := bpftest.Clang(t, `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY_PROG);
	__type(key, __u32);
	__type(value, __u64);
} config SEC(".maps");
SEC("xdp") int p(void *ctx)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&counters, &key), *set = bpf_map_lookup_elem(&config, &key);
	if (value && set) *value += *set;
	return 2;
}`)
	_, err = parse(object, asked("p", "counters", volume.ReadWrite))
	wantError(t, err, ErrInvalid, `map "counters": access rw: the object makes it with BPF_F_RDONLY, read-only for user space; show it read-only`)
	// What programs alone must not write is what a pod may be meant to.
	c = load(t, mustParse(t, object, asked("p", "config", volume.ReadWrite)))
	if err := c.Maps["config"].Put(uint32(0), uint64(7)); err != nil {
		t.Errorf("update of what is read-only for programs: %v", err)
	}
}
