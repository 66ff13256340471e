// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// loader runs Debian's xdp-loader in the namespace of the dispatcher.
func (w *world) loader(t testing.TB, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("xdp-loader")
	if err != nil {
		t.Skip("no xdp-loader here; install xdp-tools")
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LIBXDP_BPFFS="+w.bpffs)
	var out []byte
	err = w.here.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	return string(out), err
}

func (w *world) mustLoader(t testing.TB, args ...string) string {
	t.Helper()
	out, err := w.loader(t, args...)
	if err != nil {
		t.Fatalf("xdp-loader %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// theirs are programs of somebody else, in C and with BTF: xdp-loader takes no others.
const theirs = `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} packets SEC(".maps");

static __always_inline void count(void)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&packets, &zero);
	if (n)
		__sync_fetch_and_add(n, 1);
}

SEC("xdp") int their_pass(struct xdp_md *ctx)
{
	count();
	return XDP_PASS;
}

SEC("xdp.frags") int their_frags(struct xdp_md *ctx)
{
	count();
	return XDP_PASS;
}

SEC("xdp") int their_drop(struct xdp_md *ctx)
{
	count();
	return XDP_DROP;
}

SEC("xdp") int their_shift(struct xdp_md *ctx)
{
	count();
	if (bpf_xdp_adjust_head(ctx, -4) || bpf_xdp_adjust_head(ctx, 4))
		return XDP_ABORTED;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
`

// theirObject is theirs, compiled once: in an emulated machine that takes seconds.
var theirObject []byte

// their loads a program of theirs by xdp-loader and finds its counter.
func (w *world) their(t testing.TB, name string, args ...string) program {
	t.Helper()
	before := map[ebpf.ProgramID]bool{}
	if d := w.mustRead(t); d != nil {
		for _, c := range d.Components {
			before[c.ID] = true
		}
	}
	w.mustLoader(t, append(append([]string{"load", "-n", name}, args...), "veth0", theirFile(t))...)
	for _, c := range w.mustRead(t).Components {
		if !before[c.ID] {
			return counterOf(t, c.ID)
		}
	}
	t.Fatalf("xdp-loader loaded %s, and there is no new component", name)
	return program{}
}

// theirFile is the object with their programs.
func theirFile(t testing.TB) string {
	t.Helper()
	if theirObject == nil {
		theirObject = bpftest.Clang(t, theirs)
	}
	file := filepath.Join(t.TempDir(), "theirs.o")
	if err := os.WriteFile(file, theirObject, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// counterOf opens a running program and its only map.
func counterOf(t testing.TB, id ebpf.ProgramID) program {
	t.Helper()
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	ids, _ := info.MapIDs()
	if len(ids) != 1 {
		t.Fatalf("program %d has maps %v, want one", id, ids)
	}
	m, err := ebpf.NewMapFromID(ids[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return program{prog, id, m}
}
