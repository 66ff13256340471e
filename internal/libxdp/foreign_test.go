// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// These run on every kernel: they end before a component is attached.

// foreignWorld is a world where nothing can be added.
func foreignWorld(t *testing.T) *world {
	t.Helper()
	bpftest.Root(t)
	w := &world{bpffs: bpftest.BPFFS(t)}
	w.Dir = filepath.Join(w.bpffs, "xdp")
	w.here, w.there = bpftest.Pair(t)
	w.ifindex = w.here.Index(t, "veth0")
	if err := os.Mkdir(w.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return w
}

// stays checks that a program is refused for a reason, and is still there after everything was tried. Read stands for
// what Add and Remove look at first.
func (w *world) stays(t *testing.T, theirs *ebpf.Program, why string) {
	t.Helper()
	id := programID(t, theirs)
	_, err := w.read(t)
	var foreign *ForeignError
	if !errors.Is(err, ErrForeign) || !errors.As(err, &foreign) || foreign.ID != id {
		t.Fatalf("read: %v, want ErrForeign with id %d", err, id)
	}
	if !strings.Contains(err.Error(), why) {
		t.Errorf("read: %v, want %q in it", err, why)
	}
	w.mustRemove(t, id)
	if Supported() == nil {
		if err := w.add(t, w.program(t, "ours", pass), Options{}); !errors.Is(err, ErrForeign) {
			t.Errorf("add: %v, want ErrForeign", err)
		}
	}
	if at := w.attached(t); at.id != id {
		t.Errorf("program %d is attached, want theirs, %d", at.id, id)
	}
	if left := w.pins(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// attach attaches a program of somebody else.
func (w *world) attach(t *testing.T, prog *ebpf.Program) {
	t.Helper()
	err := w.here.Do(func() error {
		return netlink.LinkSetXdpFdWithFlags(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: w.ifindex}}, prog.FD(), unix.XDP_FLAGS_DRV_MODE)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// impostor is a program with the name of a dispatcher and some maps.
func impostor(t *testing.T, name string, maps ...*ebpf.MapSpec) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, pass), asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	for _, spec := range maps {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := prog.BindMap(m); err != nil {
			t.Fatal(err)
		}
	}
	return prog
}

// configMap is the map of a dispatcher, with any value.
func configMap(value []byte) *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(value)), MaxEntries: 1, Flags: unix.BPF_F_RDONLY_PROG,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: value}},
	}
}

func TestForeignProgramStays(t *testing.T) {
	valid := configMap(exampleConfig(version2).encode())
	writable, hash := *valid, *valid
	writable.Flags = 0
	hash.Type = ebpf.Hash
	huge := ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 1 << 20, MaxEntries: 1, Flags: unix.BPF_F_RDONLY_PROG}
	for name, c := range map[string]struct {
		prog func(t *testing.T) *ebpf.Program
		why  string
	}{
		"plain":          {func(t *testing.T) *ebpf.Program { return impostor(t, "lb") }, "it is no dispatcher of libxdp"},
		"without map":    {func(t *testing.T) *ebpf.Program { return impostor(t, dispatcherName) }, "but 0 maps"},
		"with two maps":  {func(t *testing.T) *ebpf.Program { return impostor(t, dispatcherName, valid, valid) }, "but 2 maps"},
		"writable map":   {func(t *testing.T) *ebpf.Program { return impostor(t, dispatcherName, &writable) }, "its map is no configuration"},
		"hash":           {func(t *testing.T) *ebpf.Program { return impostor(t, dispatcherName, &hash) }, "its map is no configuration"},
		"huge map":       {func(t *testing.T) *ebpf.Program { return impostor(t, dispatcherName, &huge) }, "its map is no configuration"},
		"other contents": {func(t *testing.T) *ebpf.Program { return impostor(t, dispatcherName, configMap(make([]byte, size2))) }, "before version 2"},
		"no pins":        {func(t *testing.T) *ebpf.Program { return impostor(t, dispatcherName, valid) }, "whose components are not pinned in "},
		"bound to device": {func(t *testing.T) *ebpf.Program {
			return impostor(t, dispatcherName, configMap(exampleConfig(version3).encode()))
		}, "bound to its device"},
	} {
		t.Run(name, func(t *testing.T) {
			w := foreignWorld(t)
			theirs := c.prog(t)
			w.attach(t, theirs)
			w.stays(t, theirs, c.why)
		})
	}
}

func TestUnknownVersionIsRefused(t *testing.T) {
	for _, version := range []uint8{1, 4, 255} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			w := foreignWorld(t)
			b := exampleConfig(version3).encode()
			b[1] = version
			theirs := impostor(t, dispatcherName, configMap(b))
			w.attach(t, theirs)
			w.stays(t, theirs, fmt.Sprintf("it is a dispatcher of libxdp's version %d, and this bpfvol knows 2 and 3", version))
		})
	}
}

// Pins can be of anything.
func TestPinsOfOtherKindsAreRefused(t *testing.T) {
	w := foreignWorld(t)
	theirs := impostor(t, dispatcherName, configMap(exampleConfig(version2).encode()))
	w.attach(t, theirs)
	dir := w.dispatchDir(w.ifindex, programID(t, theirs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(dir, progPin(0))
	m := newCounter(t)
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	if _, err := w.read(t); !errors.Is(err, ErrForeign) {
		t.Errorf("a map for a program: %v, want ErrForeign", err)
	}
	if err := m.Unpin(); err != nil {
		t.Fatal(err)
	}
	if err := impostor(t, "other").Pin(pin); err != nil {
		t.Fatal(err)
	}
	if _, err := w.read(t); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "the program is of type XDP") {
		t.Errorf("a program of another type: %v, want ErrForeign", err)
	}
	w.mustRemove(t, programID(t, theirs))
	if _, err := os.Stat(pin); err != nil {
		t.Errorf("their pin: %v", err)
	}
}

func TestNoProgramIsNoDispatcher(t *testing.T) {
	w := foreignWorld(t)
	if d, err := w.read(t); d != nil || err != nil {
		t.Errorf("read: %v, %v, want nothing", d, err)
	}
	w.mustRemove(t, 1)
}

func TestDirectoryMustBeOnBPFFS(t *testing.T) {
	w := newWorld(t)
	p := w.program(t, "count", pass)
	bpffs := w.Dir
	w.Dir = filepath.Join(t.TempDir(), "xdp")
	if err := w.add(t, p, Options{}); err == nil || !strings.Contains(err.Error(), "not on a bpffs; mount one") {
		t.Errorf("error is %v, want: not on a bpffs", err)
	}
	if _, err := os.Stat(w.Dir); err == nil {
		t.Error("the directory was left")
	}
	w.Dir = bpffs
}

func TestUnknownArgumentsAreRefused(t *testing.T) {
	w := newWorld(t)
	p := w.program(t, "count", pass)
	for want, err := range map[string]error{
		"version 4 is not known; there are 2 and 3": w.here.Do(func() error {
			return Protocol{Dir: w.Dir, Version: 4}.Add(t.Context(), w.ifindex, p.Program, Options{})
		}),
		`XDP mode "fast" is neither native nor generic`:                 w.add(t, p, Options{Mode: "fast"}),
		"the program is of type XDP, and a component of type Extension": w.add(t, program{Program: impostor(t, "count")}, Options{}),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
}

// libxdp makes none, but somebody might: a dispatcher that a bpf_link holds can be read, and not be replaced.
func TestDispatcherOfLinkStays(t *testing.T) {
	w := newWorld(t)
	theirs, ours := w.program(t, "theirs", pass), w.program(t, "ours", pass)
	s, err := newSlot(theirs.Program)
	if err != nil {
		t.Fatal(err)
	}
	b, err := build(version2, []*slot{s})
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	dir := w.dispatchDir(w.ifindex, b.id)
	if err := errors.Join(w.makeDir(), b.pin(dir, w.reached)); err != nil {
		t.Fatal(err)
	}
	var l link.Link
	err = w.here.Do(func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: b.prog, Interface: w.ifindex, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = w.add(t, ours, Options{})
	if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "a bpf_link holds it") {
		t.Errorf("add: %v, want ErrForeign", err)
	}
	if got := w.running(t); got != "theirs" {
		t.Errorf("components are %q, want theirs", got)
	}
	w.meets(t, "theirs", theirs)
	if err := errors.Join(l.Close(), dismantle(dir, w.reached)); err != nil {
		t.Fatal(err)
	}
}
