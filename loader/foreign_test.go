// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// foreignObjects are objects that nobody here wrote: those of Debian's xdp-tools, and those that the authors of
// cilium/ebpf test with and show as examples. Those for another byte order or machine are left out.
func foreignObjects(t testing.TB) []string {
	t.Helper()
	cilium := ciliumDir(t)
	files := slices.Concat(
		glob(t, "/usr/lib/*/bpf/*.o"),
		glob(t, cilium+"/testdata/*-el.elf"),
		glob(t, cilium+"/examples/*/*bpfel.o"),
	)
	if len(files) < 40 {
		t.Fatalf("only %d objects; install xdp-tools", len(files))
	}
	return files
}

// Every program that a hook takes is loaded as its volume would load it. What the kernel does not take, it must say so.
func TestForeignObjects(t *testing.T) {
	bpftest.Root(t)
	loaded := map[string]int{}
	for _, file := range foreignObjects(t) {
		object, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(filepath.Base(filepath.Dir(file))+"/"+filepath.Base(file), "testdata/")
		summary, err := Inspect(object)
		if err != nil {
			if strings.HasPrefix(name, "invalid") && errors.Is(err, ErrInvalid) {
				continue // cilium/ebpf's own examples of what must be refused
			}
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, p := range summary.Programs {
			if p.Attach == "" {
				continue // no hook: socket filters, freplace, struct_ops
			}
			a, err := volume.ParseAttach(p.Attach)
			if err != nil {
				t.Errorf("%s: %s: %v", name, p.Attach, err)
				continue
			}
			o, err := parse(object, sized(summary, volume.Spec{Attach: a}))
			if err != nil {
				t.Errorf("%s: program %s: %v", name, p.Name, err)
				continue
			}
			if _, err := o.TypesBTF(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			c, err := Load(t.Context(), o, Options{Types: types})
			switch {
			case err == nil:
				loaded[name]++
				c.Close()
			case errors.Is(err, ErrUnsupported), errors.As(err, new(*VerifierError)), errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, hook.ErrMissing):
				t.Logf("%s: %v", name, err)
			default:
				t.Errorf("%s: program %s: %v", name, p.Name, err)
			}
		}
	}
	t.Log("loaded", loaded)
	for _, must := range []string{"bpf/xdpfilt_alw_all.o", "bpf/xdpfilt_dny_tcp.o", "bpf/xdp-dispatcher.o", "xdp/bpf_bpfel.o",
		"tcx/bpf_bpfel.o", "tracepoint_in_c/bpf_bpfel.o", "kprobe/bpf_bpfel.o", "cgroup_skb/bpf_bpfel.o", "ringbuffer/bpf_bpfel.o",
		"tcprtt_sockops/bpf_bpfel.o", "loader-clang-22-el.elf", "strings-el.elf", "subprog_reloc-el.elf"} {
		if loaded[must] == 0 {
			t.Errorf("%s: nothing of it loaded", must)
		}
	}
}

// sized gives a size to the maps that leave it to user space, as a volume's mapEntries would.
func sized(s *Summary, spec volume.Spec) volume.Spec {
	spec.MapEntries = map[string]uint32{}
	for _, m := range s.Maps {
		if m.MaxEntries == 0 && !m.Data && m.Type != "RingBuf" && m.Type != "PerfEventArray" {
			spec.MapEntries[m.Name] = 16
		}
	}
	return spec
}

func TestXDPFilterOfXDPToolsFilters(t *testing.T) {
	files := glob(t, "/usr/lib/*/bpf/xdpfilt_dny_all.o")
	if len(files) == 0 {
		t.Fatal("no xdpfilt_dny_all.o; install xdp-tools")
	}
	object, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	c := load(t, mustParse(t, object, volume.Spec{Attach: attach(t, "{program: xdpfilt_dny_all, xdp: eth0}")}))
	if got := run(t, c.Programs["xdpfilt_dny_all"]); got != 1 {
		t.Errorf("verdict %d on an unknown packet, want XDP_DROP", got)
	}
	key := uint32(1)
	raw, err := c.Maps["xdp_stats_map"].LookupBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(raw, func(b byte) bool { return b != 0 }) {
		t.Error("xdp_stats_map did not count the packet")
	}
}
