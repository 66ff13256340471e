// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/libxdp"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// newLibxdpWorld is a world in which libxdp has a directory of its own. The test skips where the kernel lets no program
// replace functions of another.
func newLibxdpWorld(t *testing.T) *world {
	t.Helper()
	bpftest.Root(t)
	if err := libxdp.Supported(); err != nil {
		bpftest.SkipIfNotSupported(t, err)
		t.Fatal(err)
	}
	w := newWorld(t, "xdp")
	w.here.Process(t)
	w.options.LibXDPDir = filepath.Join(filepath.Dir(w.root), "xdp")
	return w
}

// loader runs Debian's xdp-loader in the namespace of the point.
func (w *world) loader(t testing.TB, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("xdp-loader")
	if err != nil {
		t.Skip("no xdp-loader here; install xdp-tools")
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LIBXDP_BPFFS="+filepath.Dir(w.root))
	var out []byte
	err = w.here.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		t.Fatalf("xdp-loader %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// listed are the names and priorities of what xdp-loader lists at veth0, in order.
func (w *world) listed(t testing.TB) (names []string) {
	t.Helper()
	for line := range strings.Lines(w.loader(t, "status", "veth0")) {
		if f := strings.Fields(line); len(f) == 6 && f[0] == "=>" {
			names = append(names, f[1]+" "+f[2])
		}
	}
	return names
}

// theirs makes xdp-loader load a program of its own, which lets packets pass.
func (w *world) theirs(t testing.TB, args ...string) {
	t.Helper()
	object := bpftest.Clang(t, `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("xdp") int theirs(struct xdp_md *ctx) { return XDP_PASS; }
char _license[] SEC("license") = "GPL";
`)
	file := filepath.Join(t.TempDir(), "theirs.o")
	if err := os.WriteFile(file, object, 0o600); err != nil {
		t.Fatal(err)
	}
	w.loader(t, append(append([]string{"load"}, args...), "veth0", file)...)
}

func wantListed(t testing.TB, w *world, want ...string) {
	t.Helper()
	if got := w.listed(t); !slices.Equal(got, want) {
		t.Errorf("xdp-loader lists %q, want %q", got, want)
	}
}

var onPass = []volume.Verdict{"pass"}

// Whoever came with libxdp keeps its programs, and xdp-loader lists ours beside them.
func TestMembersJoinLibxdpsDispatcher(t *testing.T) {
	w := newLibxdpWorld(t)
	w.theirs(t, "-P", "20")
	before, beforePackets := w.program(t, "before", 2)
	after, afterPackets := w.program(t, "after", 2)
	at := w.mustAttach(t, Member{Volume: "a", Program: "after", Priority: 30, ProceedOn: onPass}, after)
	if at.Way != LibXDP || at.Mode != volume.XDPNative {
		t.Errorf("attached as %s in mode %s, want libxdp, native", at.Way, at.Mode)
	}
	w.mustAttach(t, Member{Volume: "b", Program: "before", Priority: 10, ProceedOn: onPass}, before)
	wantListed(t, w, "10 before", "20 theirs", "30 after")
	w.wantWays(t, LibXDP, LibXDP)
	w.send(t, 5)
	if b, a := counted(t, beforePackets, 5), counted(t, afterPackets, 5); b < 5 || a < 5 {
		t.Errorf("%d packets before theirs and %d behind, want 5 and 5", b, a)
	}

	// What they change, ours outlives; what ours stop, theirs does not see.
	w.theirs(t, "-P", "25")
	w.loader(t, "unload", "veth0", "-i", w.idOf(t, "theirs"))
	wantListed(t, w, "10 before", "25 theirs", "30 after")
	if err := w.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantListed(t, w, "10 before", "25 theirs", "30 after")
	w.mustDetach(t, "b")
	wantListed(t, w, "25 theirs", "30 after")
	w.mustDetach(t, "a")
	wantListed(t, w, "25 theirs")
	w.nothingPinned(t)
	w.loader(t, "unload", "veth0", "--all")
}

// idOf is the program id of the first line of xdp-loader's list with a name.
func (w *world) idOf(t testing.TB, name string) string {
	t.Helper()
	for line := range strings.Lines(w.loader(t, "status", "veth0")) {
		if f := strings.Fields(line); len(f) == 6 && f[0] == "=>" && f[2] == name {
			return f[3]
		}
	}
	t.Fatalf("xdp-loader lists no %s", name)
	return ""
}

// With Options.LibXDP the protocol is used from the start, in order, and the last to go takes the dispatcher along.
func TestLibxdpFromTheStart(t *testing.T) {
	w := newLibxdpWorld(t)
	w.options.LibXDP = true
	drop, dropped := w.program(t, "drop", 1)
	pass, passed := w.program(t, "pass", 2)
	w.mustAttach(t, Member{Volume: "pass", Program: "pass", Priority: 10, ProceedOn: onPass}, pass)
	w.mustAttach(t, Member{Volume: "drop", Program: "drop", Priority: 20, ProceedOn: onPass}, drop)
	wantListed(t, w, "10 pass", "20 drop")
	if err := w.ping(); !errors.Is(err, bpftest.ErrNoReply) {
		t.Errorf("ping says %v, want no reply", err)
	}
	if a, b := counted(t, passed, 1), counted(t, dropped, 1); a == 0 || b == 0 {
		t.Errorf("%d and %d packets, want some", a, b)
	}

	// Another priority, and then a program loaded anew.
	w.mustAttach(t, Member{Volume: "drop", Program: "drop", Priority: 5, ProceedOn: onPass}, drop)
	wantListed(t, w, "5 drop", "10 pass")
	again, _ := w.program(t, "again", 2)
	w.mustAttach(t, Member{Volume: "drop", Program: "drop", Priority: 5, ProceedOn: onPass}, again)
	wantListed(t, w, "5 again", "10 pass")
	if err := w.ping(); err != nil {
		t.Errorf("the one that dropped is replaced: %v", err)
	}
	w.mustDetach(t, "drop")
	w.mustDetach(t, "pass")
	w.noComponents(t)
}

// An eleventh component, and a program that only the kernel can put together, are refused and leave nothing.
func TestLibxdpRefusesWhatItCannotRun(t *testing.T) {
	w := newLibxdpWorld(t)
	w.options.LibXDP = true
	kconfig := xdpKinds(t, "kconfig")[0]
	if _, err := w.attach(place(0, kconfig), kconfig.Program); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("error is %v, want not supported", err)
	}
	w.nothingLeft(t)
	for i := range 10 {
		k := xdpKinds(t, "counter")[0]
		w.mustAttach(t, place(i, k), k.Program)
	}
	late := xdpKinds(t, "nobtf")[0]
	if _, err := w.attach(place(10, late), late.Program); !errors.Is(err, ErrFull) {
		t.Errorf("error is %v, want ErrFull", err)
	}
	if n := len(w.listed(t)); n != 10 {
		t.Errorf("xdp-loader lists %d programs, want 10", n)
	}
	w.mustDetach(t, "v3")
	w.mustAttach(t, place(10, late), late.Program) // one without BTF of its own
	w.send(t, 3)
	for end := 0; late.result(t).Packets < 3 && end < 100; end++ {
		w.send(t, 1)
	}
	if got := late.result(t).Packets; got < 3 {
		t.Errorf("the last ran %d times, want 3", got)
	}
	for i := range 11 {
		w.mustDetach(t, place(i, kind{}).Volume)
	}
}

func TestLibxdpMembersGoWithTheirInterface(t *testing.T) {
	w := newLibxdpWorld(t)
	w.options.LibXDP = true
	prog, _ := w.program(t, "count", 2)
	w.mustAttach(t, first, prog)
	w.deleteInterface(t)
	if st, err := w.Status(); err != nil || len(st) != 1 || !st[0].Severed {
		t.Errorf("status is %+v, %v, want one severed point", st, err)
	}
	w.mustDetach(t, first.Volume)
	w.nothingLeft(t)
	w.noComponents(t)
}

// noComponents checks that nothing is pinned in libxdp's directory. The directory of our lock stays.
func (w *world) noComponents(t testing.TB) {
	t.Helper()
	if left := tree(t, w.options.LibXDPDir); !slices.Equal(left, []string{"bpfvol"}) {
		t.Errorf("in libxdp's directory: %v", left)
	}
}
