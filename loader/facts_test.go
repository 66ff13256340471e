// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
)

func TestFactsSayWhatTheObjectDoes(t *testing.T) {
	refs, err := volume.ParseMaps("flows:rw,totals")
	if err != nil {
		t.Fatal(err)
	}
	a := attach(t, "[{program: count, xdp: eth0}, {program: on_exec, tracepoint: syscalls/sys_enter_execve}]")
	facts := mustParse(t, bpf.Count(), volume.Spec{Attach: a, Maps: refs}).Facts()
	if diff := cmp.Diff(a, facts.Attach); diff != "" {
		t.Error(diff)
	}
	want := []verify.ProgramFacts{
		{Name: "count", Instructions: 79, Helpers: []string{"bpf_map_lookup_elem", "bpf_map_update_elem", "bpf_ringbuf_reserve", "bpf_ringbuf_submit"}},
		{Name: "on_exec", Instructions: 27, Helpers: []string{"bpf_get_current_comm", "bpf_map_lookup_elem", "bpf_map_update_elem"}},
	}
	if diff := cmp.Diff(want, facts.Programs); diff != "" {
		t.Error(diff)
	}
	access := map[string]volume.Access{}
	for _, m := range facts.Maps {
		access[m.Name] = m.Access
	}
	wantAccess := map[string]volume.Access{"flows": volume.ReadWrite, "totals": "ro", "execs": "ro", "events": "ro", ".rodata": "ro"}
	if diff := cmp.Diff(wantAccess, access); diff != "" {
		t.Error(diff)
	}
}

// A helper in a function that the program calls counts, and so does a tail-called program.
func TestFactsSeeCalledFunctionsAndPrograms(t *testing.T) {
	facts := mustParse(t, bpftest.Clang(t, tailCalls), volume.Spec{Attach: attach(t, "{program: entry, xdp: eth0}")}).Facts()
	if len(facts.Programs) != 2 || facts.Programs[1].Name != "target" {
		t.Errorf("got %+v", facts.Programs)
	}
	object := bpftest.Clang(t, `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char L[] SEC("license") = "GPL";
__attribute__((noinline)) int hidden(int x) { bpf_send_signal(x); return x; }
SEC("kprobe/f") int p(void *ctx) { return hidden(1); }`)
	facts = mustParse(t, object, volume.Spec{}).Facts()
	if diff := cmp.Diff([]string{"bpf_send_signal"}, facts.Programs[0].Helpers); diff != "" {
		t.Error(diff)
	}
}

// What is denied cannot hide: not in a callback that the kernel calls, not behind a condition that is never true, not in a
// kfunc, weak or not, whose name comes from the BTF that the kernel resolves it by, and not in a function of a function.
func TestFactsSeeCallsWhereverTheyAre(t *testing.T) {
	object := bpftest.Clang(t, `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char L[] SEC("license") = "GPL";
extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym __weak;
const volatile int never = 0;
static long called_back(__u32 i, void *ctx) { return bpf_get_prandom_u32() & 1; }
__attribute__((noinline)) int inner(int x) { bpf_send_signal(x); return x; }
__attribute__((noinline)) int outer(int x) { return inner(x) + 1; }
SEC("kprobe/f") int p(void *ctx) {
	bpf_loop(1, called_back, 0, 0);
	if (never) bpf_override_return(ctx, 0);
	bpf_rcu_read_lock();
	bpf_rcu_read_unlock();
	return outer(1);
}`)
	facts := mustParse(t, object, volume.Spec{}).Facts()
	want := []string{
		"bpf_get_prandom_u32", "bpf_loop", "bpf_override_return", "bpf_rcu_read_lock", "bpf_rcu_read_unlock", "bpf_send_signal",
	}
	if diff := cmp.Diff(want, facts.Programs[0].Helpers); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	// All of the object's code is of the one program, so its instructions are those of every section with code.
	file, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	code := uint64(0)
	for _, s := range file.Sections {
		if s.Flags&elf.SHF_EXECINSTR != 0 {
			code += s.Size
		}
	}
	if got := facts.Programs[0].Instructions; uint64(got) != code/instructionSize {
		t.Errorf("%d instructions, the object has %d", got, code/instructionSize)
	}
}

// Nobody can name a helper that is newer than this build, but a policy can deny it by its number.
func TestFactsNumberHelpersThatHaveNoName(t *testing.T) {
	insns := asm.Instructions{asm.BuiltinFunc(4711).Call(), asm.BuiltinFunc(1<<32 - 1).Call(), asm.Return()}
	if diff := cmp.Diff([]string{"helper#4294967295", "helper#4711"}, helpers(insns)); diff != "" {
		t.Error(diff)
	}
}

func TestFactsSayWhatAsksToBePinned(t *testing.T) {
	facts := mustParse(t, bpf.Pinned(), volume.Spec{Attach: attach(t, "{program: pinned, xdp: eth0}")}).Facts()
	for _, m := range facts.Maps {
		if m.PinByName != (m.Name == "packets") {
			t.Errorf("map %s asks to be pinned: %v", m.Name, m.PinByName)
		}
	}
}

// mapEntries enlarges a map before its bytes are counted.
func TestFactsCountWhatMapEntriesAskFor(t *testing.T) {
	a := attach(t, "{program: count, xdp: eth0}")
	small := mustParse(t, bpf.Count(), volume.Spec{Attach: a}).Facts()
	large := mustParse(t, bpf.Count(), volume.Spec{Attach: a, MapEntries: map[string]uint32{"flows": 1 << 20}}).Facts()
	bytesOf := func(f verify.Facts) uint64 {
		for _, m := range f.Maps {
			if m.Name == "flows" {
				return m.Bytes
			}
		}
		return 0
	}
	if got := bytesOf(large); got < 64<<20 || got <= bytesOf(small) {
		t.Errorf("a million flows take %d bytes, as the object has it %d", got, bytesOf(small))
	}
}

func TestHelperNamesAreTheKernels(t *testing.T) {
	header, err := os.ReadFile(ciliumDir(t) + "/examples/headers/bpf_helper_defs.h")
	if err != nil {
		t.Fatal(err)
	}
	definitions := regexp.MustCompile(`\(\*(?:const )?(bpf_\w+)\)\(.*\) = \(void \*\) ?(\d+);`).FindAllSubmatch(header, -1)
	if len(definitions) < 150 {
		t.Fatalf("only %d definitions", len(definitions))
	}
	for _, d := range definitions {
		id, err := strconv.Atoi(string(d[2]))
		if err != nil {
			t.Fatal(err)
		}
		if got := verify.HelperName(asm.BuiltinFunc(id)); got != string(d[1]) {
			t.Errorf("helper %d: got %s, want %s", id, got, d[1])
		}
	}
}

// The kernel looks at the license before the arguments, so each helper can be asked for.
func TestGPLOnlyHelpersAreTheKernels(t *testing.T) {
	bpftest.Root(t)
	for id := asm.BuiltinFunc(1); id < 212; id++ {
		name := verify.HelperName(id)
		for _, typ := range []ebpf.ProgramType{ebpf.XDP, ebpf.SchedCLS, ebpf.Kprobe, ebpf.TracePoint, ebpf.PerfEvent, ebpf.CGroupSKB} {
			spec := &ebpf.ProgramSpec{Type: typ, License: "Apache-2.0", Instructions: asm.Instructions{id.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return()}}
			prog, err := ebpf.NewProgramWithOptions(spec, ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats})
			if err == nil {
				prog.Close()
				continue
			}
			var rejected *ebpf.VerifierError
			if !errors.As(err, &rejected) {
				continue
			}
			log := strings.Join(rejected.Log, "\n")
			unknown := strings.Contains(log, "unknown func") || strings.Contains(log, "cannot use helper") || log == ""
			got := needsGPL(spec) != ""
			if want := strings.Contains(log, "GPL"); got != want && !unknown {
				t.Errorf("%s in %s: GPL only: %v, the kernel says %v: %s", name, typ, got, want, log)
			}
		}
	}
}

// The estimate is for a policy's limit: it must not be below what the kernel takes, nor far above.
func TestMapBytesAreNearTheKernels(t *testing.T) {
	bpftest.Root(t)
	bpftest.SkipOnOldKernel(t, "6.4", "the true size of maps in fdinfo")
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range []*ebpf.MapSpec{
		{Type: ebpf.Array, KeySize: 4, ValueSize: 12, MaxEntries: 100_000},
		{Type: ebpf.Hash, KeySize: 4, ValueSize: 24, MaxEntries: 100_000},
		{Type: ebpf.Hash, KeySize: 40, ValueSize: 200, MaxEntries: 30_000},
		{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 16, MaxEntries: 10_240},
		{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 64, MaxEntries: 10_000},
		{Type: ebpf.PerCPUHash, KeySize: 8, ValueSize: 64, MaxEntries: 10_000},
		{Type: ebpf.RingBuf, MaxEntries: 256 << 10},
		{Type: ebpf.StackTrace, KeySize: 4, ValueSize: 1016, MaxEntries: 1024},
		{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1024},
		{Type: ebpf.Queue, ValueSize: 16, MaxEntries: 1000},
		{Type: ebpf.Queue, ValueSize: 1 << 20, MaxEntries: 1},
		{Type: ebpf.Stack, ValueSize: 1 << 20, MaxEntries: 1},
		{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Flags: mmapable},
		{Type: ebpf.Hash, KeySize: 1, ValueSize: 1, MaxEntries: 1},
		{Type: ebpf.PerCPUHash, KeySize: 1, ValueSize: 1, MaxEntries: 1<<16 + 1},
		{Type: ebpf.LRUCPUHash, KeySize: 1, ValueSize: 1, MaxEntries: 1<<16 + 1},
	} {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		got, want := mapBytes(spec, uint64(cpus)), memlock(t, m)
		m.Close()
		if got < want || got > 3*want+4096 {
			t.Errorf("%s: estimated %d bytes, the kernel says %d", spec, got, want)
		}
	}
}

func memlock(t *testing.T, m *ebpf.Map) uint64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/self/fdinfo/%d", m.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "memlock:\t"); ok {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no memlock in fdinfo")
	return 0
}

// What is allocated when it is needed comes from slabs of powers of two. fdinfo does not tell, /proc/slabinfo does.
func TestMapBytesCountTheRestOfASlab(t *testing.T) {
	for _, tt := range []struct{ value, slab uint32 }{{8, 96}, {456, 1024}, {968, 2048}} {
		spec := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: tt.value, MaxEntries: 10_000, Flags: noPrealloc}
		if got, want := mapBytes(spec, 1), uint64(tt.slab)*10_000; got < want {
			t.Errorf("values of %d bytes: estimated %d bytes, the slabs take %d", tt.value, got, want)
		}
	}
}

// The kernel wants a map like those that a map of maps will hold, and makes it for a moment.
func TestMapBytesCountInnerMaps(t *testing.T) {
	inner := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 100_000}
	outer := &ebpf.MapSpec{Type: ebpf.HashOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner}
	if got, want := mapBytes(outer, 1), mapBytes(inner, 1); got < want {
		t.Errorf("estimated %d bytes, of which the inner map has %d", got, want)
	}
}

func TestMapBytesCountStorageForOne(t *testing.T) {
	if got := mapBytes(&ebpf.MapSpec{Type: ebpf.TaskStorage, KeySize: 4, ValueSize: 1 << 16}, 1); got < 1<<16 {
		t.Errorf("estimated %d bytes", got)
	}
}

func TestMapBytesSaturate(t *testing.T) {
	huge := &ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: 1<<32 - 1, ValueSize: 1<<32 - 1, MaxEntries: 1<<32 - 1}
	if got := mapBytes(huge, 1<<20); got != 1<<64-1 {
		t.Errorf("got %d", got)
	}
}
