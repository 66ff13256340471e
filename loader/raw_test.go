// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// rawProgram compiles an XDP program with an instruction that no compiler writes.
func rawProgram(t *testing.T, bytes string) []byte {
	t.Helper()
	return bpftest.Clang(t, `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char L[] SEC("license") = "GPL";
SEC("xdp") int p(void *ctx) { asm volatile(".byte `+bytes+`" ::: "r0", "r1"); return 2; }`)
}

// A descriptor in an instruction is one of this process: it would hand the program the map of another volume.
func TestObjectCannotNameMapsOfTheDaemon(t *testing.T) {
	bpftest.Root(t)
	other, err := ebpf.NewMap(&ebpf.MapSpec{Name: "other_volume", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	object := rawProgram(t, fmt.Sprintf("0x18,0x11,0,0, %d,0,0,0, 0,0,0,0, 0,0,0,0", other.FD()))
	o, err := parse(object, volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")})
	if err == nil {
		c, err := Load(t.Context(), o, Options{})
		if err == nil {
			c.Close()
		}
		t.Fatalf("the program uses a map of this process: load says %v", err)
	}
	if !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), `program "p": `) {
		t.Errorf("got error %v", err)
	}
}

// What a policy judges, it knows by name.
func TestObjectCannotNameKernelObjectsByNumber(t *testing.T) {
	for name, bytes := range map[string]string{
		"map":                "0x18,0x11,0,0, 9,0,0,0, 0,0,0,0, 0,0,0,0",
		"map value":          "0x18,0x21,0,0, 9,0,0,0, 0,0,0,0, 0,0,0,0",
		"kernel variable":    "0x18,0x31,0,0, 9,0,0,0, 0,0,0,0, 0,0,0,0",
		"map by index":       "0x18,0x51,0,0, 9,0,0,0, 0,0,0,0, 0,0,0,0",
		"map value by index": "0x18,0x61,0,0, 9,0,0,0, 0,0,0,0, 0,0,0,0",
		"kernel function":    "0x85,0x20,0,0, 9,0,0,0",
	} {
		_, err := parse(rawProgram(t, bytes), volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got error %v, want ErrInvalid", name, err)
		}
	}
	// An assembler can add the symbol of something else to the number, which the ELF reader then leaves alone.
	call := asm.Instruction{OpCode: asm.FnMapLookupElem.Call().OpCode, Src: asm.PseudoKfuncCall, Constant: 9}.WithReference("harmless")
	if !byNumber(&call) {
		t.Error("a number with a symbol of something else passes")
	}
}

// A map of operations is half of an attachment, and whoever opens it can make the other half.
func TestOperationsOfTheKernelAreNotShown(t *testing.T) {
	object := bpftest.Clang(t, `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char L[] SEC("license") = "GPL";
struct sched_ext_ops { int timeout_ms; char name[128]; };
SEC(".struct_ops.link") struct sched_ext_ops ops = { .timeout_ms = 1, .name = "slow" };
SEC("xdp") int p(void *ctx) { return 2; }`)
	_, err := parse(object, volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}"), Maps: []volume.MapRef{{Name: "ops"}}})
	wantError(t, err, ErrInvalid, `map "ops": operations of the kernel (struct_ops) cannot be shown; leave it out of maps`)
	if _, err := parse(object, volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")}); err != nil {
		t.Errorf("without: %v", err)
	}
}
