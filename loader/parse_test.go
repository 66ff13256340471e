// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestAttachDefaultsToSections(t *testing.T) {
	// The tracepoint of count is the one program that needs nothing else.
	source := `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("tracepoint/syscalls/sys_enter_execve") int a(void *ctx) { return 0; }
SEC("kprobe/do_unlinkat+0x10") int b(void *ctx) { return 0; }
SEC("uretprobe//usr/bin/bash:readline") int c(void *ctx) { return 0; }
SEC("raw_tp/sched_switch") int d(void *ctx) { return 0; }
SEC("?xdp") int left_out(void *ctx) { return 0; }
`
	o := mustParse(t, bpftest.Clang(t, source), volume.Spec{})
	want := attach(t, `
- {program: a, tracepoint: syscalls/sys_enter_execve}
- {program: b, kprobe: do_unlinkat+0x10}
- {program: c, uretprobe: "/usr/bin/bash:readline"}
- {program: d, rawTracepoint: sched_switch}
`)
	if diff := cmp.Diff(want, o.Attach()); diff != "" {
		t.Error(diff)
	}
}

// One program for each hook that a section can say whole.
func TestEverySectionThatSaysAllIsADefault(t *testing.T) {
	o := mustParse(t, bpf.Sections(), volume.Spec{})
	want := attach(t, `
- {program: on_fentry, fentry: security_task_getpgid}
- {program: on_fexit, fexit: security_task_getpgid}
- {program: on_kprobe, kprobe: security_task_getpgid}
- {program: on_kretprobe, kretprobe: security_task_getpgid}
- {program: on_lsm, lsm: task_getpgid}
- {program: on_raw_tracepoint, rawTracepoint: sys_enter}
- {program: on_sk_lookup, skLookup: {}}
- {program: on_tp_btf, rawTracepoint: sys_enter}
- {program: on_tracepoint, tracepoint: syscalls/sys_enter_getpgid}
- {program: on_uprobe, uprobe: "/usr/lib/x86_64-linux-gnu/libc.so.6:malloc"}
- {program: on_uretprobe, uretprobe: "/usr/lib/x86_64-linux-gnu/libc.so.6:malloc"}
- {program: show_tasks, iter: task}
`)
	if diff := cmp.Diff(want, o.Attach()); diff != "" {
		t.Error(diff)
	}
	bpftest.Root(t)
	c, err := Load(t.Context(), o, Options{Types: types})
	bpftest.SkipIfForbidden(t, err)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestDefaultThatNeedsMoreSaysWhatToWrite(t *testing.T) {
	tests := []struct{ name, section, text string }{
		{"xdp", "xdp", `program "p": section "xdp" needs an interface; write attach: [{program: p, xdp: {interface: eth0}}], with an entry for each program that you want`},
		{"tc", "tcx/egress", `program "p": section "tcx/egress" needs an interface; write attach: [{program: p, tc: {interface: eth0, direction: egress}}], with an entry for each program that you want`},
		{"cgroup", "cgroup/connect4", `program "p": section "cgroup/connect4" needs a cgroup; write attach: [{program: p, cgroup: {path: kubepods.slice, attach: connect4}}], with an entry for each program that you want`},
		{"netfilter", "netfilter", `program "p": section "netfilter" needs a netfilter hook; write attach: [{program: p, netfilter: {family: ipv4, hook: preRouting}}], with an entry for each program that you want`},
		{"netkit", "netkit/peer", `program "p": section "netkit/peer" needs an interface; write attach: [{program: p, netkit: {interface: nk0, peer: true}}], with an entry for each program that you want`},
		{"iter", "iter", `program "p": section "iter" needs a target; write attach: [{program: p, iter: task}], with an entry for each program that you want`},
		{"perf", "perf_event", `program "p": section "perf_event" needs an event; write attach: [{program: p, perfEvent: {event: cpu-clock, frequency: 99}}], with an entry for each program that you want`},
		{"none", "freplace/f", `program "p": no hook takes programs of section "freplace/f"; write attach with the programs that you want`},
		{"no text", "tracepoint/\xff/x", `program "p": section "tracepoint/\xff/x" is no text`},
		{"traversal", "tracepoint/../../../etc/passwd", `object: its ELF sections say where to attach, but: `},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			object := bpftest.Clang(t, `__attribute__((section("`+test.section+`"))) int p(void *ctx) { return 0; }`)
			_, err := parse(object, volume.Spec{})
			if test.name == "traversal" {
				if err == nil || !strings.HasPrefix(err.Error(), test.text) {
					t.Errorf("got %v", err)
				}
				return
			}
			wantError(t, err, ErrInvalid, test.text)
		})
	}
}

// What a section's error or `inspect` shows must be right when it is copied.
func TestExamplesParse(t *testing.T) {
	sections := []string{
		"xdp", "xdp.frags", "tc", "tc/egress", "tcx/ingress", "classifier", "netkit/primary", "netkit/peer", "tracepoint",
		"tp/sched/sched_switch", "raw_tp", "raw_tracepoint.w/x", "kprobe", "kretprobe/f", "kprobe.multi/f*", "uprobe",
		"uretprobe//bin/sh:main", "usdt", "ksyscall/execve", "tp_btf/x", "tp_btf", "fentry", "fexit/f", "iter", "iter/task", "lsm",
		"lsm/file_open", "perf_event", "netfilter", "sk_lookup", "cgroup/skb", "cgroup_skb/egress", "cgroup/connect6",
		"sockops", "cgroup/dev", "cgroup/sysctl", "cgroup/getsockopt", "cgroup/sock",
	}
	source := new(strings.Builder)
	fmt.Fprintln(source, `char L[] __attribute__((section("license"))) = "GPL";`)
	for i, s := range sections {
		fmt.Fprintf(source, "__attribute__((section(%q))) int p%d(void *ctx) { return 0; }\n", s, i)
	}
	object := bpftest.Clang(t, source.String())
	summary, err := Inspect(object)
	if err != nil {
		t.Fatal(err)
	}
	if len(summary.Programs) != len(sections) {
		t.Fatalf("%d programs of %d sections", len(summary.Programs), len(sections))
	}
	for _, p := range summary.Programs {
		a, err := volume.ParseAttach(p.Attach)
		if err != nil {
			t.Errorf("section %s: %s: %v", p.Section, p.Attach, err)
			continue
		}
		if _, err := parse(object, volume.Spec{Attach: a}); err != nil {
			t.Errorf("section %s: %v", p.Section, err)
		}
	}
}

func TestLoadsOnlyWhatIsUsed(t *testing.T) {
	two := func(a, m string) volume.Spec {
		spec := volume.Spec{Attach: attach(t, a)}
		if m != "" {
			refs, err := volume.ParseMaps(m)
			if err != nil {
				t.Fatal(err)
			}
			spec.Maps = refs
		}
		return spec
	}
	tests := []struct {
		name          string
		spec          volume.Spec
		shown, hidden []string
	}{
		{"one program", two("{program: first, xdp: eth0}", ""), []string{"both", "first_only"}, nil},
		{"other program", two("{program: second, xdp: eth0}", ""), []string{"both", "second_only"}, nil},
		{"named", two("{program: first, xdp: eth0}", "first_only"), []string{"first_only"}, []string{"both"}},
		{"named and unused", two("{program: first, xdp: eth0}", "second_only:rw"), []string{"second_only"}, []string{"both", "first_only"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := mustParse(t, bpf.Two(), test.spec)
			shown, hidden := mapNames(o)
			if diff := cmp.Diff(test.shown, shown); diff != "" {
				t.Error("shown:", diff)
			}
			if diff := cmp.Diff(test.hidden, hidden); diff != "" {
				t.Error("hidden:", diff)
			}
			c := load(t, o)
			if len(c.Programs) != 1 || len(c.Maps) != len(shown)+len(hidden) {
				t.Errorf("loaded programs %v, maps %v", c.Programs, c.Maps)
			}
		})
	}
}

func TestUnknownNamesListWhatExists(t *testing.T) {
	xdp := attach(t, "{program: first, xdp: eth0}")
	_, err := parse(bpf.Two(), volume.Spec{Attach: attach(t, "{program: frist, xdp: eth0}")})
	wantError(t, err, ErrNotFound, `program "frist" not in image; it has: first, second; did you mean "first"?`)
	_, err = parse(bpf.Two(), volume.Spec{Attach: xdp, Maps: []volume.MapRef{{Name: "stats"}}})
	wantError(t, err, ErrNotFound, `map "stats" not in image; it has: both, first_only, second_only`)
	_, err = parse(bpf.Two(), volume.Spec{Attach: xdp, MapEntries: map[string]uint32{"stats": 1}})
	wantError(t, err, ErrNotFound, `map "stats" not in image; it has: both, first_only, second_only`)
	_, err = parse(bpf.Two(), volume.Spec{Attach: xdp, Variables: map[string]any{"x": int64(1)}})
	wantError(t, err, ErrInvalid, `variable "x" not in image; it has none`)
}

func TestDataSectionsAreHiddenUnlessNamed(t *testing.T) {
	spec := volume.Spec{Attach: attach(t, "{program: report, xdp: eth0}")}
	shown, hidden := mapNames(mustParse(t, bpf.Variables(), spec))
	if diff := cmp.Diff([]string{"seen"}, shown); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{".bss", ".data", ".rodata", ".rodata.tuning"}, hidden); diff != "" {
		t.Error(diff)
	}
	spec.Maps = []volume.MapRef{{Name: "data", Access: volume.ReadWrite}, {Name: "rodata_tuning", Access: volume.ReadOnly}}
	o := mustParse(t, bpf.Variables(), spec)
	shown, _ = mapNames(o)
	if diff := cmp.Diff([]string{"data", "rodata_tuning"}, shown); diff != "" {
		t.Error(diff)
	}
	c := load(t, o)
	value, err := c.Maps["data"].LookupBytes(uint32(0))
	if err != nil || binary.NativeEndian.Uint64(value) != 7 {
		t.Errorf("data holds %v, %v; want threshold 7", value, err)
	}
}

func TestHookMustTakeTheProgram(t *testing.T) {
	tests := []struct{ attach, text string }{
		{"{program: count, tc: {interface: eth0, direction: ingress}}",
			`program "count": hook tc does not take programs of section "xdp"; attach it as {program: count, xdp: {interface: eth0}}`},
		{"{program: on_exec, xdp: eth0}",
			`program "on_exec": hook xdp does not take programs of section "tracepoint/syscalls/sys_enter_execve"; attach it as {program: on_exec, tracepoint: syscalls/sys_enter_execve}`},
		{"{program: count, cgroup: {path: kubepods.slice, attach: connect4}}",
			`program "count": hook cgroup connect4 does not take programs of section "xdp"; attach it as {program: count, xdp: {interface: eth0}}`},
	}
	for _, test := range tests {
		_, err := parse(bpf.Count(), volume.Spec{Attach: attach(t, test.attach)})
		wantError(t, err, ErrInvalid, test.text)
	}
}

func TestOneProgramCannotBeLoadedTwoWays(t *testing.T) {
	object := bpftest.Clang(t, `__attribute__((section("cgroup/connect4"))) int p(void *ctx) { return 1; }`)
	_, err := parse(object, volume.Spec{Attach: attach(t, `
- {program: p, cgroup: {path: /, attach: connect4}}
- {program: p, cgroup: {path: /, attach: connect6}}
`)})
	wantError(t, err, ErrInvalid, `program "p": two of its attachments need it to be loaded differently (cgroup / connect6, cgroup / connect4); give each a program of its own`)
}

func TestCgroupAttachIsFilledFromTheSection(t *testing.T) {
	o := mustParse(t, bpf.Hooks(), volume.Spec{Attach: attach(t, "[{program: on_egress, cgroup: {path: /}}, {program: on_ingress, cgroup: {path: /}}]")})
	for i, want := range []string{"skb/egress", "skb/ingress"} {
		if got := o.Attach()[i].Hook.(*volume.Cgroup).Attach; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	load(t, o)
}

// A section of the author's own choice takes the type of the hook that the volume names.
func TestSectionWithoutMeaningTakesTheHooksType(t *testing.T) {
	object := bpftest.Clang(t, `__attribute__((section("my_filter"))) int p(void *ctx) { return 2; }`)
	o := mustParse(t, object, volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")})
	if c := load(t, o); c.Programs["p"].Type() != ebpf.XDP {
		t.Errorf("loaded as %s", c.Programs["p"].Type())
	}
}

func TestParseRefusesWhatIsNotForThisNode(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	host := self[:min(len(self), maxELF)]
	tests := []struct {
		name   string
		object []byte
		text   string
	}{
		{"empty", nil, `object: not an ELF file: it begins with ""`},
		{"text", []byte("hello\nworld"), `object: not an ELF file: it begins with "hello\nwo"`},
		{"big-endian", bpf.PassBigEndian(), `object: big-endian, this node is little-endian; compile it with clang -target bpfel`},
		{"truncated", bpf.Pass()[:100], `object: malformed ELF: EOF; compile it again with clang -target bpf`},
		{"no program", bpftest.Clang(t, "int x = 1;"), `object: no program in it`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := parse(test.object, volume.Spec{})
			if test.name == "truncated" {
				if err == nil || !strings.HasPrefix(err.Error(), "object: malformed ELF: ") {
					t.Errorf("got %v", err)
				}
				return
			}
			wantError(t, err, ErrInvalid, test.text)
		})
	}
	_, err = parse(host, volume.Spec{})
	if err == nil || !strings.HasPrefix(err.Error(), "object: made for ") {
		t.Errorf("this test's own binary: got %v", err)
	}
}

func TestParseRefusesWhatIsTooLarge(t *testing.T) {
	many := new(strings.Builder)
	for i := range maxPrograms + 1 {
		many.WriteString(strings.ReplaceAll(`__attribute__((section("tp/a"))) int pN(void *ctx) { return 0; }`, "N", string(rune('a'+i%26))+strings.Repeat("_", i/26)))
	}
	tests := []struct {
		name   string
		object []byte
		text   string
	}{
		{"bytes", make([]byte, maxELF+1), "object: 33554433 bytes are over the limit of 33554432"},
		{"bss", bpftest.Clang(t, `char big[1<<30]; __attribute__((section("xdp"))) int p(void *ctx) { return big[1]; }`),
			`object: section ".bss" of 1073741824 bytes is over the limit of 33554432 for all of its kind`},
		{"programs", bpftest.Clang(t, many.String()), "object: 513 programs are over the limit of 512"},
		{"compressed", compress(t, bpf.Variables()), `object: section ".rodata" is compressed; strip it or compile without -gz`},
		{"overlapping symbols", overlap(t, bpf.Variables()), `object: the symbols of section ".rodata" overlap`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := parse(test.object, volume.Spec{})
			wantError(t, err, ErrInvalid, test.text)
		})
	}
}

// compress marks .rodata as compressed.
func compress(t *testing.T, object []byte) []byte {
	t.Helper()
	file, header := sectionHeader(t, object, ".rodata")
	defer file.Close()
	binary.LittleEndian.PutUint64(header[8:], binary.LittleEndian.Uint64(header[8:])|uint64(elf.SHF_COMPRESSED))
	return object
}

// overlap makes every symbol of .rodata cover the whole section.
func overlap(t *testing.T, object []byte) []byte {
	t.Helper()
	file, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	table := file.SectionByType(elf.SHT_SYMTAB)
	for at := table.Offset; at < table.Offset+table.Size; at += 24 {
		index := binary.LittleEndian.Uint16(object[at+6:])
		if int(index) < len(file.Sections) && file.Sections[index].Name == ".rodata" && elf.ST_TYPE(object[at+4]) == elf.STT_OBJECT {
			binary.LittleEndian.PutUint64(object[at+16:], file.Sections[index].Size)
		}
	}
	return object
}

// sectionHeader returns the bytes of a section's header, to be changed.
func sectionHeader(t *testing.T, object []byte, name string) (*elf.File, []byte) {
	t.Helper()
	file, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range file.Sections {
		if s.Name == name {
			at := binary.LittleEndian.Uint64(object[0x28:]) + uint64(i)*64
			return file, object[at : at+64]
		}
	}
	t.Fatalf("no section %s", name)
	return nil, nil
}

func TestGPLOnlyHelperNeedsALicense(t *testing.T) {
	source := `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
LICENSE
SEC("xdp") int p(void *ctx) { bpf_printk("x"); return XDP_PASS; }
`
	spec := volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")}
	with := func(license string) []byte { return bpftest.Clang(t, strings.ReplaceAll(source, "LICENSE", license)) }
	_, err := parse(with(`char L[] SEC("license") = "Apache-2.0";`), spec)
	wantError(t, err, ErrInvalid, `program "p": the helper bpf_trace_printk is for GPL-compatible programs and license "Apache-2.0" is not; for example: char LICENSE[] SEC("license") = "Dual BSD/GPL"`)
	_, err = parse(with(""), spec)
	wantError(t, err, ErrInvalid, `program "p": the helper bpf_trace_printk is for GPL-compatible programs and it has no license; for example: char LICENSE[] SEC("license") = "Dual BSD/GPL"`)
	load(t, mustParse(t, with(`char L[] SEC("license") = "Dual MIT/GPL";`), spec))
}

// A name from an object becomes the name of a file.
func TestNamesThatAreNoFileNamesAreRefused(t *testing.T) {
	source := `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, int); __type(value, int); } aaaaaaaa SEC(".maps");
SEC("xdp") int bbbbbbbb(void *ctx) { int k = 0; bpf_map_lookup_elem(&aaaaaaaa, &k); return 2; }
`
	object := bpftest.Clang(t, source)
	_, err := parse(bytes.ReplaceAll(object, []byte("aaaaaaaa"), []byte("../../xx")), volume.Spec{Attach: attach(t, "{program: bbbbbbbb, xdp: eth0}")})
	wantError(t, err, ErrInvalid, `map "../../xx": the name cannot be a file name; use letters, digits and _`)
	_, err = parse(bytes.ReplaceAll(object, []byte("bbbbbbbb"), []byte("../../xx")), volume.Spec{
		Attach: []volume.Attach{{Program: "../../xx", Hook: attach(t, "{program: p, xdp: eth0}")[0].Hook}}})
	wantError(t, err, ErrInvalid, `program "../../xx": the name cannot be a file name; use letters, digits and _`)
}
