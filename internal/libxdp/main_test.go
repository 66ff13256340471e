// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := victim(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	bpftest.Main(m)
}

// Verdicts, and chain call actions made of them.
const (
	drop = 1
	pass = 2

	onPass = 1 << pass
	onDrop = 1 << drop
)

// world is a protocol with its bpffs and two namespaces. The dispatcher is on veth0 of here; there is the other end.
type world struct {
	Protocol
	bpffs       string
	here, there *bpftest.NetNS
	ifindex     int
}

// newWorld skips the test where the kernel refuses programs that replace functions.
func newWorld(t testing.TB) *world {
	t.Helper()
	bpftest.Root(t)
	bpftest.SkipIfNotSupported(t, Supported())
	bpftest.NothingLeft(t)
	w := &world{bpffs: bpftest.BPFFS(t)}
	w.Dir = filepath.Join(w.bpffs, "xdp")
	w.here, w.there = bpftest.Pair(t)
	w.ifindex = w.here.Index(t, "veth0")
	t.Cleanup(func() { w.nothingLeft(t) })
	return w
}

// nothingLeft checks that there is no pin, and no program on the interface if that still exists.
func (w *world) nothingLeft(t testing.TB) {
	t.Helper()
	if left := w.pins(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if at := w.attached(t); at.id != 0 {
		t.Errorf("left: program %d on the interface", at.id)
	}
}

func (w *world) attached(t testing.TB) (at attachment) {
	t.Helper()
	err := w.here.Do(func() (err error) {
		at, err = attached(w.ifindex)
		return err
	})
	if err != nil && !errors.Is(err, ErrNoInterface) && !errors.Is(err, ErrForeign) {
		t.Fatal(err)
	}
	return at
}

// pins lists what is below the directory of the protocol, but for the directory that stays.
func (w *world) pins(t testing.TB) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(w.Dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if rel, _ := filepath.Rel(w.Dir, path); rel != "." && rel != ownDir {
			paths = append(paths, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// program is a component and the map in which it counts its packets.
type program struct {
	*ebpf.Program
	id      ebpf.ProgramID
	packets *ebpf.Map
}

// program loads a component that counts its packets and returns a verdict.
func (w *world) program(t testing.TB, name string, verdict int32) program {
	t.Helper()
	spec, packets := counter(t, name, verdict)
	return load1(t, spec, packets)
}

func load1(t testing.TB, spec *ebpf.ProgramSpec, packets *ebpf.Map) program {
	t.Helper()
	prog, err := Load(spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return program{prog, programID(t, prog), packets}
}

func programID(t testing.TB, prog *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, ok := info.ID()
	if !ok {
		t.Fatal("the kernel gives programs no ids")
	}
	return id
}

// counter is an XDP program without BTF, as a compiler makes it of C without -g.
func counter(t testing.TB, name string, verdict int32) (*ebpf.ProgramSpec, *ebpf.Map) {
	t.Helper()
	packets := newCounter(t)
	return &ebpf.ProgramSpec{Name: name, Type: ebpf.XDP, License: "GPL", Instructions: append(count(packets.FD()),
		asm.Mov.Imm(asm.R0, verdict),
		asm.Return(),
	)}, packets
}

func newCounter(t testing.TB) *ebpf.Map {
	t.Helper()
	packets, err := ebpf.NewMap(&ebpf.MapSpec{Name: "packets", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close() })
	return packets
}

// count adds one to the entry of a map. The context is in R6 afterwards.
func count(fd int) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, fd),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "counted"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("counted"),
	}
}

// met is how many packets the program has met; it waits until there are at least as many as were sent, or two seconds.
func (p program) met(t testing.TB, sent uint64) (n uint64) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := p.packets.Lookup(uint32(0), &n); err != nil {
			t.Fatal(err)
		}
		if n >= sent || time.Now().After(end) {
			return n
		}
	}
}

// now is how many packets the program has met.
func (p program) now(t testing.TB) uint64 {
	t.Helper()
	return p.met(t, 0)
}

// meets checks that the next packets meet the program.
func (w *world) meets(t testing.TB, what string, p program) {
	t.Helper()
	was := p.now(t)
	w.send(t, 5)
	if n := p.met(t, was+5) - was; n != 5 {
		t.Errorf("%s met %d of 5 packets", what, n)
	}
}

// missed checks that the next packets do not meet the program, and do meet the others.
func (w *world) missed(t testing.TB, what string, p program, others ...program) {
	t.Helper()
	was := p.now(t)
	var before []uint64
	for _, other := range others {
		before = append(before, other.now(t))
	}
	w.send(t, 5)
	for i, other := range others {
		if n := other.met(t, before[i]+5) - before[i]; n != 5 {
			t.Errorf("%s: program %d met %d of 5 packets", what, other.id, n)
		}
	}
	if n := p.now(t) - was; n != 0 {
		t.Errorf("%s met %d packets, want none", what, n)
	}
}

func (w *world) send(t testing.TB, n int) {
	t.Helper()
	w.there.SendUDP(t, w.here.Addr, n)
}

// ping returns nil if packets get by the dispatcher.
func (w *world) ping() error { return w.there.Ping(w.here.Addr) }

func (w *world) add(t testing.TB, p program, o Options) error {
	t.Helper()
	return w.here.Do(func() error { return w.Add(t.Context(), w.ifindex, p.Program, o) })
}

func (w *world) mustAdd(t testing.TB, p program, o Options) {
	t.Helper()
	if err := w.add(t, p, o); err != nil {
		t.Fatalf("add: %v", err)
	}
}

// remove has a context of its own: cleanups call it.
func (w *world) mustRemove(t testing.TB, ids ...ebpf.ProgramID) {
	t.Helper()
	for _, id := range ids {
		err := w.here.Do(func() error { return w.Remove(t.Context(), w.ifindex, id) })
		if err != nil {
			t.Fatalf("remove: %v", err)
		}
	}
}

func (w *world) read(t testing.TB) (d *Dispatcher, err error) {
	t.Helper()
	err = w.here.Do(func() (err error) {
		d, err = w.Read(t.Context(), w.ifindex)
		return err
	})
	return d, err
}

func (w *world) mustRead(t testing.TB) *Dispatcher {
	t.Helper()
	d, err := w.read(t)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return d
}

// running are the names of the components in order.
func (w *world) running(t testing.TB) string {
	t.Helper()
	d := w.mustRead(t)
	if d == nil {
		return ""
	}
	var names []string
	for _, c := range d.Components {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}
