// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
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
		if got := helperName(asm.BuiltinFunc(id)); got != string(d[1]) {
			t.Errorf("helper %d: got %s, want %s", id, got, d[1])
		}
	}
}

// The kernel looks at the license before the arguments, so each helper can be asked for.
func TestGPLOnlyHelpersAreTheKernels(t *testing.T) {
	bpftest.Root(t)
	for id := asm.BuiltinFunc(1); id < 212; id++ {
		name := helperName(id)
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

// The kernel wants a map like those that a map of maps will hold, and makes it for a moment.
func TestMapBytesCountInnerMaps(t *testing.T) {
	inner := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 100_000}
	outer := &ebpf.MapSpec{Type: ebpf.HashOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner}
	if got, want := mapBytes(outer, 1), mapBytes(inner, 1); got < want {
		t.Errorf("estimated %d bytes, of which the inner map has %d", got, want)
	}
}

func TestMapBytesSaturate(t *testing.T) {
	huge := &ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: 1<<32 - 1, ValueSize: 1<<32 - 1, MaxEntries: 1<<32 - 1}
	if got := mapBytes(huge, 1<<20); got != 1<<64-1 {
		t.Errorf("got %d", got)
	}
}
