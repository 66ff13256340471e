// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// clock is one that a test sets.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

// reconciler is one of the fixture's engine that repairs, with its clock.
func (f *fixture) reconciler(grace time.Duration) (*Reconciler, *clock) {
	c := &clock{now: time.Now()}
	return NewReconciler(f.Engine, ReconcileOptions{Repair: true, Grace: grace, Now: c.Now}), c
}

// pass makes a pass and wants so many repairs of it.
func pass(t *testing.T, f *fixture, r *Reconciler, repairs int) {
	t.Helper()
	before := r.Last()
	if err := r.Pass(f.ctx); err != nil {
		t.Error(err)
	}
	if got := r.Last().Repairs - before.Repairs; got != repairs {
		t.Errorf("%d repairs, want %d", got, repairs)
	}
}

func wantHealth(t *testing.T, f *fixture, req Request, want string) {
	t.Helper()
	if got, err := f.Health(t.Context(), req.VolumeID, ""); err != nil || got.String() != want {
		t.Errorf("health is %q, %v, want %q", got, err, want)
	}
}

// Whatever others detach or unpin of a volume runs again after one pass, as the pod sees it.
func TestPassBringsBackWhatOthersTookAway(t *testing.T) {
	detach := func(pattern string) func(*testing.T, *fixture) {
		return func(t *testing.T, f *fixture) {
			l, err := link.LoadPinnedLink(firstPin(t, f, pattern), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := l.Detach(); err != nil {
				t.Fatal(err)
			}
		}
	}
	unpin := func(patterns ...string) func(*testing.T, *fixture) {
		return func(t *testing.T, f *fixture) {
			for _, pattern := range patterns {
				remove(t, firstPin(t, f, pattern))
			}
		}
	}
	for name, c := range map[string]struct {
		spoil   func(*testing.T, *fixture)
		repairs int
	}{
		"nothing":                         {func(*testing.T, *fixture) {}, 0},
		"link of the interface detached":  {detach("points/*/link"), 1},
		"link of a tracepoint unpinned":   {unpin("volumes/*/links/1-0-on_exec"), 1},
		"directory of links removed":      {unpin("volumes/*/links/1-0-on_exec", "volumes/*/links"), 1},
		"program unpinned":                {unpin("volumes/*/progs/count"), 1},
		"map unpinned":                    {unpin("volumes/*/maps/flows"), 1},
		"member unpinned":                 {unpin("points/*/members/*/count/record"), 1},
		"member's program unpinned":       {unpin("points/*/members/*/count/*/prog"), 1},
		"program and link of it unpinned": {unpin("volumes/*/progs/on_exec", "points/*/set"), 2},
		"record of the interface's link":  {unpin("points/*/record"), 0},
		"link detached and tracepoint removed": {func(t *testing.T, f *fixture) {
			detach("points/*/link")(t, f)
			unpin("volumes/*/links/1-0-on_exec")(t, f)
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			ns, peer := bpftest.Pair(t)
			holdNetNS(t, ns)
			req := f.request(t, f.signed(t, "count", bpf.Count()),
				"[{program: count, xdp: veth0}, {program: on_exec, tracepoint: syscalls/sys_enter_execve}]")
			f.publishIn(t, ns, req)
			r, _ := f.reconciler(0)
			pass(t, f, r, 0)
			c.spoil(t, f)
			pass(t, f, r, c.repairs)
			wantHealth(t, f, req, "ok")
			pass(t, f, r, 0)
			if got := r.Last(); got.Unhealthy != 0 || got.Failures != 0 {
				t.Errorf("report is %+v, want all well", got)
			}
			for name, act := range map[string]func() error{
				"execs": exec.Command("true").Run,
				"flows": func() error { return peer.Ping(ns.Addr) },
			} {
				before := shown(t, req, name)
				if err := act(); err != nil {
					t.Error(err)
				}
				if shown(t, req, name) == before {
					t.Errorf("nothing counts in map %s", name)
				}
			}
		})
	}
}

// shown is a map as the pod reads it.
func shown(t *testing.T, req Request, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(req.Target, "json", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// holdNetNS keeps a process in a namespace, as a pod does: by it the namespace is found.
func holdNetNS(t *testing.T, ns *bpftest.NetNS) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() //nolint:errcheck // it was killed
	})
}

// The links of every hook that the kernel shares come back from the record and the pinned programs. Where the section alone
// said where to attach, too.
func TestPassAttachesEveryHookAgain(t *testing.T) {
	f := newFixture(t)
	ns := bpftest.NewNetNS(t)
	holdNetNS(t, ns)
	req := f.request(t, f.signed(t, "sections", bpf.Sections()), "")
	delete(req.Attributes, "attach")
	err := ns.Do(func() error { return f.Publish(f.ctx, req) })
	bpftest.SkipIfForbidden(t, err)
	bpftest.SkipIfNotSupported(t, err)
	f.published(t, req, err)
	links, err := filepath.Glob(filepath.Join(f.opts.BPFFSDir, "volumes/*/links/*"))
	if err != nil || len(links) == 0 {
		t.Fatal(links, err)
	}
	for _, l := range links {
		remove(t, l)
	}
	r, _ := f.reconciler(0)
	pass(t, f, r, len(links))
	wantHealth(t, f, req, "ok")
	got, err := filepath.Glob(filepath.Join(f.opts.BPFFSDir, "volumes/*/links/*"))
	if err != nil || !slices.Equal(got, links) {
		t.Errorf("links are %v, %v, want %v", got, err, links)
	}
}

// As TestPassAttachesEveryHookAgain, of hooks that every kernel of the matrix has.
func TestPassAttachesProbesAndCgroupsAgain(t *testing.T) {
	f := newFixture(t)
	ns := bpftest.NewNetNS(t)
	holdNetNS(t, ns)
	req := f.request(t, f.signed(t, "hooks", hooks()), `[
		{program: on_tracepoint, tracepoint: syscalls/sys_enter_getpgid},
		{program: on_raw_tracepoint, rawTracepoint: sys_enter},
		{program: on_perf_event, perfEvent: {event: cpu-clock, frequency: 10}}]`)
	f.publishIn(t, ns, req)
	links, err := filepath.Glob(filepath.Join(f.opts.BPFFSDir, "volumes/*/links/*"))
	if err != nil || len(links) < 3 {
		t.Fatal(links, err)
	}
	for _, l := range links[1:] { // the first of a perf event is left
		remove(t, l)
	}
	r, _ := f.reconciler(0)
	pass(t, f, r, 2)
	wantCounted(t, req.Target, 2)
	wantHealth(t, f, req, "ok")
}

// A program of somebody else that took the place is left, told once, and tried again after longer and longer pauses; when it
// is gone, ours runs.
func TestPassLeavesAForeignProgram(t *testing.T) {
	f := newFixture(t)
	ns, peer := bpftest.Pair(t)
	holdNetNS(t, ns)
	req := f.request(t, f.signed(t, "count", bpf.Count()), "{program: count, xdp: veth0}")
	f.publishIn(t, ns, req)
	prog := loadPass(t)
	set := func(fd int) {
		in(t, ns, func() error {
			l, err := netlink.LinkByName("veth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetXdpFdWithFlags(l, fd, unix.XDP_FLAGS_DRV_MODE)
		})
	}
	l, err := link.LoadPinnedLink(firstPin(t, f, "points/*/link"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Detach(), l.Close()); err != nil {
		t.Fatal(err)
	}
	set(prog.FD())

	r, clock := f.reconciler(0)
	for i := range 3 {
		pass(t, f, r, 0)
		if got := r.Last(); got.Foreign != 1 || got.Unhealthy != 1 || got.Failures != 1 {
			t.Errorf("pass %d: report is %+v, want one foreign program, and one try", i, got)
		}
	}
	id, _ := info(t, prog).ID()
	wantHealth(t, f, req, fmt.Sprintf(`xdp veth0: nothing runs: program "theirs" (id %d), which is not bpfvol's, took the place`, id))
	for pause, tries := time.Minute, 1; pause < 20*time.Minute; pause *= 2 {
		clock.now = clock.now.Add(min(pause, maxPause))
		tries++
		pass(t, f, r, 0)
		clock.now = clock.now.Add(time.Second)
		pass(t, f, r, 0)
		if got := r.Last().Failures; got != tries {
			t.Errorf("%d tries after a pause of %v, want %d", got, pause, tries)
		}
	}
	set(-1)
	clock.now = clock.now.Add(maxPause)
	pass(t, f, r, 1)
	wantHealth(t, f, req, "ok")
	before := shown(t, req, "flows")
	if err := peer.Ping(ns.Addr); err != nil || shown(t, req, "flows") == before {
		t.Errorf("the program does not count: %v", err)
	}
}

// A volume that a call works on is left to it.
func TestPassSkipsALockedVolume(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	remove(t, firstPin(t, f, "volumes/*/links/*"))
	unlock, err := f.locks.try(volume.FileName(req.VolumeID))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := f.reconciler(0)
	pass(t, f, r, 0)
	unlock()
	pass(t, f, r, 1)
	wantCounted(t, req.Target, 1)
}

// kubelet's call could not take all of a volume away, and will come again.
func TestPassLeavesAVolumeThatIsShownNowhere(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	if err := unix.Unmount(req.Target, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	remove(t, firstPin(t, f, "volumes/*/links/*"))
	r, _ := f.reconciler(0)
	pass(t, f, r, 0)
	if got := r.Last(); got.Unhealthy != 1 {
		t.Errorf("report is %+v, want one volume that is not healthy", got)
	}
}

func TestPassWithoutRepairOnlyTells(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	remove(t, firstPin(t, f, "volumes/*/links/*"))
	r := NewReconciler(f.Engine, ReconcileOptions{})
	pass(t, f, r, 0)
	if got := r.Last(); got.Unhealthy != 1 {
		t.Errorf("report is %+v, want one volume that is not healthy", got)
	}
}

// Somebody unmounted the bpffs. Nothing can be brought back, and that is told.
func TestPassTellsOfPinsThatAreGone(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	if err := unpin(f.pins(volume.FileName(req.VolumeID))); err != nil {
		t.Fatal(err)
	}
	r, _ := f.reconciler(0)
	pass(t, f, r, 0)
	if got := r.Last(); got.Unhealthy != 1 || got.Failures != 0 {
		t.Errorf("report is %+v, want one volume that is not healthy", got)
	}
	wantHealth(t, f, req, "its pins are gone")
}

// An interface that was deleted and made again is another one.
func TestPassLeavesAnInterfaceThatCameBack(t *testing.T) {
	f := newFixture(t)
	ns := bpftest.NewNetNS(t)
	holdNetNS(t, ns)
	ns.Veth(t, "lan0", "peer0")
	req := f.request(t, f.signed(t, "count", bpf.Count()), "{program: count, xdp: lan0}")
	f.publishIn(t, ns, req)
	in(t, ns, func() error {
		l, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	ns.Veth(t, "lan0", "peer0")
	r, _ := f.reconciler(0)
	pass(t, f, r, 0)
	wantHealth(t, f, req, "xdp lan0: nothing runs: the interface is gone")
	in(t, ns, func() error {
		l, err := netlink.LinkByName("lan0")
		if err == nil && l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached {
			err = errors.New("it has a program")
		}
		return err
	})
}

// loadPass loads an XDP program that lets packets pass.
func loadPass(t *testing.T) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "theirs", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

func info(t *testing.T, prog *ebpf.Program) *ebpf.ProgramInfo {
	t.Helper()
	i, err := prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	return i
}
