// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// errand is what the test binary does in place of the tests: it plays another process, which may be killed.
type errand struct {
	Does    string // attach, detach, recover
	Member  Member
	Slot    bool // the member's program needs a slot
	Stats   bool // Options.MemberStats
	Dies    int  // at this effect; 0: never
	Root    string
	Carrier string
}

const errandEnv = "BPFVOL_DISPATCHER_ERRAND"

func TestMain(m *testing.M) {
	if text := os.Getenv(errandEnv); text != "" {
		if err := runErrand(text); err != nil {
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
	sent        uint64 // datagrams, by send
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
		w.here.Process(t)
	}
	w.point = w.resolve(t, c.hook)
	t.Cleanup(func() { w.nothingLeft(t) })
	return w
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

func count(t testing.TB, packets *ebpf.Map) uint64 {
	t.Helper()
	return number(t, packets, 0)
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

// status reads the status of the point.
func (w *world) status(t testing.TB) PointStatus {
	t.Helper()
	all, err := w.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range all {
		if st.Point == w.point {
			return st
		}
	}
	t.Fatalf("no status of %s: %+v", w.point, all)
	return PointStatus{}
}

// send sends n packets by the point.
func (w *world) send(t testing.TB, n int) {
	t.Helper()
	w.sent += uint64(n)
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

// neutral is a verdict and a proceedOn with which a member hands on, and runs plain where it is alone.
func (w *world) neutral() (int32, []volume.Verdict) {
	if carriers[w.carrier].typ == ebpf.XDP {
		return carriers[w.carrier].pass, []volume.Verdict{"pass"}
	}
	return -1, []volume.Verdict{"unspec"}
}

// run starts the test binary in the namespace of the point on an errand, and reports whether it was killed.
func (w *world) run(t testing.TB, e errand) (killed bool) {
	t.Helper()
	killed, err := w.start(t, e)
	if err != nil {
		t.Fatal(err)
	}
	return killed
}

func (w *world) start(t testing.TB, e errand) (killed bool, err error) {
	t.Helper()
	e.Root, e.Carrier = w.root, w.carrier
	text, err := json.Marshal(e)
	if err != nil {
		return false, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), errandEnv+"="+string(text))
	var out []byte
	err = w.here.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	var exit *exec.ExitError
	if killed = errors.As(err, &exit) && exit.ExitCode() == -1; killed {
		t.Logf("%s %s killed after: %s", e.Does, e.Member.Volume, out)
		return true, nil
	} else if err != nil {
		return false, fmt.Errorf("%s %s: %w: %s", e.Does, e.Member.Volume, err, out)
	}
	return false, nil
}

func runErrand(text string) error {
	var e errand
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return err
	}
	c := carriers[e.Carrier]
	d := New(e.Root, Options{MemberStats: e.Stats})
	d.classic = c.classic
	steps := 0
	d.step = func(name string) {
		if steps++; steps == e.Dies {
			fmt.Print(name)
			unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	ctx := context.Background()
	switch e.Does {
	case "attach":
		points, err := Resolve(c.hook)
		if err != nil {
			return err
		}
		load := newProgram
		if e.Slot {
			load = newSlotProgram
		}
		prog, _, err := load(c.typ, "errand", c.pass)
		if err != nil {
			return err
		}
		_, err = d.Attach(ctx, points[0], volume.XDPAuto, e.Member, prog)
		return err
	case "detach":
		return d.Detach(ctx, e.Member.Volume)
	case "recover":
		return d.Recover(ctx)
	}
	return errors.New("unknown errand")
}
