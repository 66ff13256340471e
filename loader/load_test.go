// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// link makes one object of several, as bpftool's static linker does.
func link(t *testing.T, objects ...[]byte) []byte {
	t.Helper()
	dir := t.TempDir()
	args := []string{"gen", "object", filepath.Join(dir, "linked.o")}
	for i, o := range objects {
		file := filepath.Join(dir, string(rune('a'+i))+".o")
		if err := os.WriteFile(file, o, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	if out, err := exec.Command("bpftool", args...).CombinedOutput(); err != nil {
		t.Fatalf("bpftool: %v\n%s", err, out)
	}
	linked, err := os.ReadFile(args[2])
	if err != nil {
		t.Fatal(err)
	}
	return linked
}

// mapIDs are the kernel's ids of a collection's maps, progIDs those of its programs.
func ids(t *testing.T, c *Collection) (mapIDs map[string]ebpf.MapID, progIDs map[string]ebpf.ProgramID) {
	t.Helper()
	mapIDs, progIDs = map[string]ebpf.MapID{}, map[string]ebpf.ProgramID{}
	for name, m := range c.Maps {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		mapIDs[name], _ = info.ID()
	}
	for name, p := range c.Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		progIDs[name], _ = info.ID()
	}
	return mapIDs, progIDs
}

// alive lists which of the maps and programs the kernel still has.
func alive(mapIDs map[string]ebpf.MapID, progIDs map[string]ebpf.ProgramID) (names []string) {
	for name, id := range mapIDs {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			m.Close()
			names = append(names, name)
		}
	}
	for name, id := range progIDs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			p.Close()
			names = append(names, name)
		}
	}
	return names
}

func TestCloseLeavesNothing(t *testing.T) {
	bpftest.Root(t)
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection would close what Close forgot
	spec := volume.Spec{
		Attach: attach(t, "{program: report, xdp: eth0}"),
		Maps:   []volume.MapRef{{Name: "seen"}, {Name: "rodata"}, {Name: "bss"}},
	}
	o := mustParse(t, bpf.Variables(), spec)
	c, err := Load(t.Context(), o, Options{})
	if err != nil {
		t.Fatal(err)
	}
	maps, progs := ids(t, c)
	if len(maps) != 5 || len(progs) != 1 {
		t.Fatalf("loaded %v %v", maps, progs)
	}
	dir := filepath.Join(bpftest.BPFFS(t), "volume")
	if err := c.Pin(dir); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if left := alive(maps, progs); len(left) != 6 {
		t.Errorf("pinned, and alive are only %v", left)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	// The kernel frees after a grace period.
	var left []string
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left = alive(maps, progs); len(left) == 0 {
			return
		}
	}
	t.Errorf("left: %v", left)
}

func TestPinPinsWhatIsShown(t *testing.T) {
	dir := filepath.Join(bpftest.BPFFS(t), "volume")
	o := mustParse(t, bpf.Variables(), volume.Spec{
		Attach: attach(t, "{program: report, xdp: eth0}"), Maps: []volume.MapRef{{Name: "seen"}, {Name: "rodata_tuning"}}})
	if err := load(t, o).Pin(dir); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range []string{"maps", "progs"} {
		for _, f := range glob(t, filepath.Join(dir, d, "*")) {
			got = append(got, d+"/"+filepath.Base(f))
		}
	}
	if diff := cmp.Diff([]string{"maps/rodata_tuning", "maps/seen", "progs/report"}, got); diff != "" {
		t.Error(diff)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", "seen"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
}

func TestPinByNameStaysInTheVolume(t *testing.T) {
	o := mustParse(t, bpf.Pinned(), volume.Spec{Attach: attach(t, "{program: pinned, xdp: eth0}")})
	first, second := load(t, o), load(t, o)
	run(t, first.Programs["pinned"])
	for i, c := range []*Collection{first, second} {
		var count uint64
		if err := c.Maps["packets"].Lookup(uint32(0), &count); err != nil || count != uint64(1-i) {
			t.Errorf("volume %d counts %d, %v; want %d", i, count, err, 1-i)
		}
	}
}

func TestMapEntries(t *testing.T) {
	asked := volume.Spec{Attach: attach(t, "{program: touch, xdp: eth0}"), MapEntries: map[string]uint32{"shapes": 3, "ringbuf": 8192}}
	asked.Maps = []volume.MapRef{{Name: "shapes"}, {Name: "ringbuf"}, {Name: "ringbuf_unsized"}}
	c := load(t, mustParse(t, bpf.Types(), asked))
	for name, want := range map[string]uint32{"shapes": 3, "ringbuf": 8192, "ringbuf_unsized": 256 << 10, "array": 4} {
		info, err := c.Maps[name].Info()
		if err != nil || info.MaxEntries != want {
			t.Errorf("%s has %d entries, %v; want %d", name, info.MaxEntries, err, want)
		}
	}
	asked.MapEntries = map[string]uint32{"ringbuf": 5000}
	_, err := parse(bpf.Types(), asked)
	wantError(t, err, ErrInvalid, `map "ringbuf": a ring buffer of 5000 bytes; the size must be a power of two and at least 4096: set mapEntries`)
	asked.MapEntries = map[string]uint32{"shapes": 0}
	_, err = parse(bpf.Types(), asked)
	wantError(t, err, ErrInvalid, `map "shapes": max_entries is 0, which leaves the size to user space; set mapEntries: {shapes: 1024} or what it takes`)
}

func TestEveryMapTypeLoads(t *testing.T) {
	summary, err := Inspect(bpf.Types())
	if err != nil {
		t.Fatal(err)
	}
	spec := volume.Spec{Attach: attach(t, "{program: touch, xdp: eth0}")}
	for _, m := range summary.Maps {
		if !m.Data {
			spec.Maps = append(spec.Maps, volume.MapRef{Name: m.Name})
		}
	}
	c := load(t, mustParse(t, bpf.Types(), spec))
	if len(c.Maps) < 18 {
		t.Errorf("only %d maps", len(c.Maps))
	}
}

const tailCalls = `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char L[] SEC("license") = "GPL";
struct inner { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, int); __type(value, int); };
struct inner in_array SEC(".maps");
struct inner unused SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); __uint(max_entries, 2); __type(key, int); __array(values, struct inner); }
	outer SEC(".maps") = { .values = { [1] = &in_array } };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, int); __type(value, int); } of_target SEC(".maps");
int target(struct xdp_md *ctx);
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 2); __uint(key_size, 4); __array(values, int (void *)); }
	jumps SEC(".maps") = { .values = { [1] = (void *)&target } };
SEC("xdp") int target(struct xdp_md *ctx) {
	int k = 1, z = 0, *v; void *in;
	v = bpf_map_lookup_elem(&of_target, &z); if (v) *v += 1;
	in = bpf_map_lookup_elem(&outer, &k); if (!in) return 0;
	v = bpf_map_lookup_elem(in, &z); if (v) *v += 1;
	return XDP_TX;
}
SEC("xdp") int entry(struct xdp_md *ctx) { bpf_tail_call(ctx, &jumps, 1); return XDP_DROP; }
`

func TestMapsAndProgramsInsideMapsAreLoaded(t *testing.T) {
	object := bpftest.Clang(t, tailCalls)
	o := mustParse(t, object, volume.Spec{Attach: attach(t, "{program: entry, xdp: eth0}"), Maps: []volume.MapRef{{Name: "in_array"}}})
	shown, hidden := mapNames(o)
	if diff := cmp.Diff([][]string{{"in_array"}, {"jumps", "of_target", "outer"}}, [][]string{shown, hidden}); diff != "" {
		t.Error(diff)
	}
	c := load(t, o)
	if len(c.Programs) != 1 || c.Programs["entry"] == nil {
		t.Errorf("programs %v, want only the attached one", c.Programs)
	}
	if got := run(t, c.Programs["entry"]); got != 3 {
		t.Errorf("verdict %d, want XDP_TX of the tail-called program", got)
	}
	var count uint32
	if err := c.Maps["in_array"].Lookup(uint32(0), &count); err != nil || count != 1 {
		t.Errorf("inner map counts %d, %v; want 1", count, err)
	}
}

// The kernel empties a program array that nobody in user space holds. The pins must outlive the daemon's descriptors.
func TestTailCallsWorkAfterClose(t *testing.T) {
	bpftest.Root(t)
	object := bpftest.Clang(t, tailCalls)
	o := mustParse(t, object, volume.Spec{Attach: attach(t, "{program: entry, xdp: eth0}"), Maps: []volume.MapRef{{Name: "in_array"}}})
	c, err := Load(t.Context(), o, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dir := filepath.Join(bpftest.BPFFS(t), "volume")
	if err := c.Pin(dir); err != nil {
		t.Fatal(err)
	}
	c.Close()
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(dir, "progs", "entry"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	if got := run(t, prog); got != 3 {
		t.Errorf("verdict %d, want XDP_TX of the tail-called program", got)
	}
}

// Tail-called programs are not attached by default: only their caller decides.
func TestTailCalledProgramIsNoDefault(t *testing.T) {
	_, err := parse(bpftest.Clang(t, tailCalls), volume.Spec{})
	if err == nil || !strings.HasPrefix(err.Error(), `program "entry": section "xdp" needs an interface`) {
		t.Errorf("got %v", err)
	}
}

func TestMapTooLargeIsAResourceError(t *testing.T) {
	bpftest.Root(t)
	spec := volume.Spec{Attach: attach(t, "{program: touch, xdp: eth0}"), MapEntries: map[string]uint32{"array": 1<<32 - 1}}
	_, err := Load(t.Context(), mustParse(t, bpf.Types(), spec), Options{})
	if !errors.Is(err, syscall.E2BIG) && !errors.Is(err, syscall.ENOMEM) {
		t.Fatalf("got %v", err)
	}
	if text := err.Error(); errors.Is(err, ErrInvalid) || !strings.HasPrefix(text, "load: map array: ") || !strings.HasSuffix(text, "; ask for less, for example by mapEntries") {
		t.Errorf("got %v", err)
	}
}

func TestLoadMindsItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Load(ctx, mustParse(t, bpf.Pass(), volume.Spec{Attach: attach(t, "{program: pass, xdp: eth0}")}), Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestMapsAreReadBackBySyscall(t *testing.T) {
	o := mustParse(t, bpf.Two(), volume.Spec{Attach: attach(t, "{program: first, xdp: eth0}")})
	c := load(t, o)
	for range 3 {
		run(t, c.Programs["first"])
	}
	for _, name := range []string{"both", "first_only"} {
		raw, err := c.Maps[name].LookupBytes(uint32(0))
		if err != nil || binary.NativeEndian.Uint64(raw) != 3 {
			t.Errorf("%s holds %v, %v; want 3", name, raw, err)
		}
	}
	i := slices.IndexFunc(o.Maps(), func(m MapInfo) bool { return m.Name == "both" })
	if m := o.Maps()[i]; m.Type != ebpf.Array || typeName(m.Key) != "__u32" || typeName(m.Value) != "__u64" || m.Access != volume.ReadOnly {
		t.Errorf("described as %+v", m)
	}
}

func TestKconfigIsFilledIn(t *testing.T) {
	object := bpftest.Clang(t, `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
extern int LINUX_KERNEL_VERSION __kconfig;
SEC("xdp") int p(struct xdp_md *ctx) { return LINUX_KERNEL_VERSION >> 16; }`)
	o := mustParse(t, object, volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")})
	if got := run(t, load(t, o).Programs["p"]); got < 5 {
		t.Errorf("kernel version %d", got)
	}
	missing := bpftest.Clang(t, `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
extern int CONFIG_BPFVOL_NO_SUCH_OPTION __kconfig;
SEC("xdp") int p(struct xdp_md *ctx) { return CONFIG_BPFVOL_NO_SUCH_OPTION; }`)
	o = mustParse(t, missing, volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")})
	_, err := Load(t.Context(), o, Options{})
	wantError(t, err, ErrUnsupported, `load: program p: resolve .kconfig: config option "CONFIG_BPFVOL_NO_SUCH_OPTION" does not exist on this kernel; see bpfvol doctor`)
}
