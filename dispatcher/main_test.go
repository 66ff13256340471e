// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// The test binary plays the process that is killed: what it is to do, with what, and at which effect it dies.
const (
	roleEnv = "BPFVOL_DISPATCHER_ROLE"
	dirEnv  = "BPFVOL_DISPATCHER_DIR"
	hookEnv = "BPFVOL_DISPATCHER_HOOK"
	stepEnv = "BPFVOL_DISPATCHER_STEP"
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

// carriers are the hooks under test, each with all that is special to it.
var carriers = map[string]struct {
	hook    volume.Hook
	typ     ebpf.ProgramType
	classic bool
	pass    int32
	drop    int32
	egress  bool
	needs   string // kernel version
}{
	"xdp":    {hook: &volume.XDP{Interfaces: []string{"veth0"}}, typ: ebpf.XDP, pass: 2, drop: 1},
	"tcx":    {hook: &volume.TC{Interfaces: []string{"veth0"}, Direction: volume.Ingress}, typ: ebpf.SchedCLS, pass: 0, drop: 2, needs: "6.6"},
	"clsact": {hook: &volume.TC{Interfaces: []string{"veth0"}, Direction: volume.Ingress}, typ: ebpf.SchedCLS, pass: 0, drop: 2, classic: true},
	"tcx egress": {hook: &volume.TC{Interfaces: []string{"veth0"}, Direction: volume.Egress}, typ: ebpf.SchedCLS, pass: 0, drop: 2,
		egress: true, needs: "6.6"},
	"clsact egress": {hook: &volume.TC{Interfaces: []string{"veth0"}, Direction: volume.Egress}, typ: ebpf.SchedCLS, pass: 0, drop: 2,
		egress: true, classic: true},
}

// eachCarrier runs a test for every carrier, in a fresh world.
func eachCarrier(t *testing.T, test func(t *testing.T, w *world)) {
	for name := range carriers {
		t.Run(name, func(t *testing.T) { test(t, newWorld(t, name)) })
	}
}

// types are the kernel's, read once.
var types = btf.NewCache()

// world is a dispatcher with its bpffs and two namespaces. The programs attach to veth0 of here; there is the other end.
type world struct {
	*Dispatcher
	carrier     string
	here, there *bpftest.NetNS
	point       Point
}

func newWorld(t testing.TB, carrier string) *world {
	t.Helper()
	c := carriers[carrier]
	bpftest.Root(t)
	if c.needs != "" {
		bpftest.SkipOnOldKernel(t, c.needs, carrier)
	}
	w := &world{Dispatcher: New(filepath.Join(bpftest.BPFFS(t), "points"), Options{Types: types}), carrier: carrier}
	w.classic = c.classic
	w.here, w.there = bpftest.Pair(t)
	if c.classic {
		holdNetNS(t, w.here)
	}
	w.point = w.resolve(t, c.hook)
	t.Cleanup(func() { w.nothingLeft(t) })
	return w
}

// holdNetNS starts a process in a namespace, as a pod would: one that only a descriptor holds cannot be found again.
func holdNetNS(t testing.TB, ns *bpftest.NetNS) (pid int) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

func (w *world) resolve(t testing.TB, h volume.Hook) (p Point) {
	t.Helper()
	err := w.here.Do(func() error {
		points, err := Resolve(h)
		if err == nil && len(points) != 1 {
			err = fmt.Errorf("%d points, want 1", len(points))
		}
		if err == nil {
			p = points[0]
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// program makes a program that counts its packets and returns a verdict.
func (w *world) program(t testing.TB, name string, verdict int32) (Program, *ebpf.Map) {
	t.Helper()
	prog, packets, err := newProgram(carriers[w.carrier].typ, name, verdict)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close(); packets.Close() })
	return prog, packets
}

func newProgram(typ ebpf.ProgramType, name string, verdict int32) (Program, *ebpf.Map, error) {
	packets, err := ebpf.NewMap(&ebpf.MapSpec{Name: "packets", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return Program{}, nil, err
	}
	attach := ebpf.AttachNone
	if typ == ebpf.XDP {
		attach = ebpf.AttachXDP
	}
	spec := &ebpf.ProgramSpec{Name: name, Type: typ, AttachType: attach, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word).WithSymbol(name),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, 0).WithReference("packets"),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, verdict).WithSymbol("out"),
		asm.Return(),
	}}
	prog, err := loadProgram(spec, map[string]*ebpf.Map{"packets": packets})
	if err != nil {
		packets.Close()
		return Program{}, nil, err
	}
	return prog, packets, nil
}

// loadProgram loads a program alone, as package loader does.
func loadProgram(spec *ebpf.ProgramSpec, maps map[string]*ebpf.Map) (Program, error) {
	alone := spec.Copy()
	for name, m := range maps {
		if err := alone.Instructions.AssociateMap(name, m); err != nil && !errors.Is(err, asm.ErrUnreferencedSymbol) {
			return Program{}, err
		}
	}
	prog, err := ebpf.NewProgram(alone)
	return Program{Program: prog, Spec: spec, Maps: maps}, err
}

func count(t testing.TB, packets *ebpf.Map) (n uint64) {
	t.Helper()
	if err := packets.Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// counted waits until at least as many packets are counted as were sent, and returns how many are. A kernel that is busy
// takes packets from the receive queue after their sender went on; one that lost them is told by the two seconds.
func counted(t testing.TB, packets *ebpf.Map, sent uint64) (n uint64) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		if n = count(t, packets); n >= sent || time.Now().After(end) {
			return n
		}
	}
}

// attach attaches a member in the namespace of the point.
func (w *world) attach(m Member, prog Program) (at Attachment, err error) {
	err = w.here.Do(func() (err error) {
		at, err = w.Attach(context.Background(), w.point, volume.XDPAuto, m, prog)
		return err
	})
	return at, err
}

func (w *world) attachMode(m Member, prog Program, mode volume.XDPMode) error {
	return w.here.Do(func() error {
		at, err := w.Attach(context.Background(), w.point, mode, m, prog)
		if err == nil && mode != volume.XDPAuto && at.Mode != mode {
			err = fmt.Errorf("attached in mode %q", at.Mode)
		}
		return err
	})
}

func (w *world) mustAttach(t testing.TB, m Member, prog Program) Attachment {
	t.Helper()
	at, err := w.attach(m, prog)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return at
}

func (w *world) mustDetach(t testing.TB, volume string) {
	t.Helper()
	if err := w.Detach(context.Background(), volume); err != nil {
		t.Fatalf("detach: %v", err)
	}
}

// send sends n packets by the point.
func (w *world) send(t testing.TB, n int) {
	t.Helper()
	if carriers[w.carrier].egress {
		w.here.SendUDP(t, w.there.Addr, n)
	} else {
		w.there.SendUDP(t, w.here.Addr, n)
	}
}

// ping returns nil if packets get by the point.
func (w *world) ping() error { return w.there.Ping(w.here.Addr) }

// nothingLeft checks that there are no pins and that the interface, if it still exists, is as it was.
func (w *world) nothingLeft(t testing.TB) {
	t.Helper()
	w.nothingPinned(t)
	err := w.here.Do(func() error {
		l, err := netlink.LinkByIndex(w.point.IfIndex)
		if err != nil {
			return nil // gone
		}
		if xdp := l.Attrs().Xdp; xdp != nil && xdp.Attached {
			t.Errorf("left: XDP program %d", xdp.ProgId)
		}
		for _, attach := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			q, err := link.QueryPrograms(link.QueryOptions{Target: w.point.IfIndex, Attach: attach})
			if err == nil && len(q.Programs) > 0 {
				t.Errorf("left: %v", q.Programs)
			}
		}
		qdiscs, err := netlink.QdiscList(l)
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				t.Error("left: clsact")
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func (w *world) nothingPinned(t testing.TB) {
	t.Helper()
	if left := tree(t, w.root); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// tree lists what is below a directory, without the directory; nothing if it does not exist.
func tree(t testing.TB, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			paths = append(paths, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

var (
	first  = Member{Volume: "first", Program: "count", Priority: 10}
	second = Member{Volume: "second", Program: "count", Priority: 20}
)

// proceedOnPass is the proceedOn of a member that hands on what it lets pass.
func proceedOnPass(w *world) []volume.Verdict {
	if carriers[w.carrier].typ == ebpf.XDP {
		return []volume.Verdict{"pass"}
	}
	return []volume.Verdict{"ok", "pipe"}
}

// run starts the test binary in the namespace of the point, to do something with the member "first" and to kill itself
// right after the given effect. It reports whether it came that far, and at which effect that was.
func (w *world) run(t testing.TB, role string, step int) (killed bool) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+role, dirEnv+"="+w.root, hookEnv+"="+w.carrier, stepEnv+"="+strconv.Itoa(step))
	var out []byte
	err := w.here.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil && cmd.ProcessState.Success() == false && cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("%s: %v: %s", role, err, out)
	}
	if len(out) > 0 {
		t.Logf("killed after: %s", out)
	}
	return err != nil
}

func victim(role string) error {
	c := carriers[os.Getenv(hookEnv)]
	last, err := strconv.Atoi(os.Getenv(stepEnv))
	if err != nil {
		return err
	}
	d := New(os.Getenv(dirEnv), Options{})
	d.classic = c.classic
	steps := 0
	d.step = func(name string) {
		if steps++; steps == last {
			fmt.Print(name)
			unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	switch role {
	case "attach":
		points, err := Resolve(c.hook)
		if err != nil {
			return err
		}
		prog, _, err := newProgram(c.typ, "victim", c.pass)
		if err != nil {
			return err
		}
		_, err = d.Attach(context.Background(), points[0], volume.XDPAuto, first, prog)
		return err
	case "detach":
		return d.Detach(context.Background(), first.Volume)
	}
	return errors.New("unknown role")
}
