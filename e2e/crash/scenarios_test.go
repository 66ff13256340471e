// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/crash/inject"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

// scenario is something that the daemon does for a volume, in which a fault can happen.
type scenario struct {
	name string
	// attach is what the volume attaches; empty: everywhere.
	attach string
	// persistent says that the volume is a PersistentVolume, which another pod has all the time.
	persistent bool
	// alone says that the node has no neighbour.
	alone bool
	// before brings about what act needs. It leaves the daemon running, unless act starts it.
	before func(*testing.T, *world, *nodetest.Volume)
	// always are faults that are part of the scenario, of which only the effects after the first are visited.
	always []inject.Fault
	act    func(context.Context, *world, *nodetest.Volume) error
	// only says which effects are visited, where another scenario visits the rest; nil: all.
	only func(effect string) bool
	// pulls says that act fills the cache, and that the daemon keeps a connection for a while after it.
	pulls bool
	// gone says that the volume is to be gone when act has succeeded.
	gone bool
}

func setUp(ctx context.Context, _ *world, v *nodetest.Volume) error    { return v.SetUp(ctx) }
func tearDown(ctx context.Context, _ *world, v *nodetest.Volume) error { return v.TearDown(ctx) }

// start starts a daemon that was killed, and waits until it has looked after its volumes for the first time.
func start(ctx context.Context, w *world, _ *nodetest.Volume) error {
	if _, err := w.Stack.StartDaemon(ctx); err != nil {
		return err
	}
	ctx, stop := w.whileRunning(ctx)
	defer stop()
	if err := w.Connect(ctx); err != nil {
		return err
	}
	for ; ; time.Sleep(time.Millisecond) {
		took, err := w.metrics.value("bpfvol_reconcile_seconds")
		if err == nil && took != "0" {
			return nil
		}
		if !w.Running() {
			return err
		}
	}
}

// severed is a volume of which somebody took away the pins of two links, so that they ended, while no daemon looked.
func severed(t *testing.T, w *world, v *nodetest.Volume) {
	t.Helper()
	published(t, w, v)
	w.StopDaemon(t, syscall.SIGKILL)
	for _, pattern := range []string{"points/tc-egress-*/link", "volumes/*/links/*-on_exec"} {
		pins, err := filepath.Glob(filepath.Join(w.BPFFSDir(), pattern))
		if err != nil || len(pins) != 1 {
			t.Fatalf("pins at %s: %q, %v", pattern, pins, err)
		}
		if err := os.Remove(pins[0]); err != nil {
			t.Fatal(err)
		}
	}
}

func published(t *testing.T, w *world, v *nodetest.Volume) {
	t.Helper()
	if err := v.SetUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantView(t, v)
}

// emptyCache takes all images away, so that a publish has to pull.
func emptyCache(t *testing.T, w *world, _ *nodetest.Volume) {
	t.Helper()
	w.StopDaemon(t, syscall.SIGKILL)
	if err := os.RemoveAll(w.CacheDir()); err != nil {
		t.Fatal(err)
	}
	w.StartDaemon(t)
}

// rebooted takes away what a reboot does.
func rebooted(t *testing.T, w *world, _ *nodetest.Volume) {
	t.Helper()
	w.StopDaemon(t, syscall.SIGKILL)
	if err := errors.Join(unix.Unmount(w.BPFFSDir(), 0), os.RemoveAll(w.StateDir())); err != nil {
		t.Fatal(err)
	}
}

// killed is a publish that ended with the daemon, before an effect.
func killed(effect string) func(*testing.T, *world, *nodetest.Volume) {
	return func(t *testing.T, w *world, v *nodetest.Volume) {
		t.Helper()
		fault := inject.Fault{Effect: effect, Nth: 1}
		w.faults.Watch(fault)
		err := v.SetUp(t.Context())
		if _, hit := w.faults.Done(); err == nil || !hit[fault] {
			t.Fatalf("publish was to be killed before %q and says %v", effect, err)
		}
		w.StopDaemon(t, syscall.SIGKILL)
	}
}

const (
	mountTop   = "move_mount / to run/kubelet/pods/POD/volumes/kubernetes.io~csi/bpf/mount"
	mountPart  = mountTop + "/json"
	swap       = "bpf LINK_UPDATE"
	setReplace = "renameat bpffs/points/xdp-POINT/next-set to bpffs/points/xdp-POINT/set"
	lockFiles  = "run/state/locks/"
	done       = "unlinkat " + lockFiles + "VOLUME"
)

func has(pattern string) func(string) bool { return regexp.MustCompile(pattern).MatchString }

func not(f func(string) bool) func(string) bool { return func(s string) bool { return !f(s) } }

// atEveryStart are effects of a start with nothing to recover, which is one of the scenarios.
var atEveryStart = has(` cache/| run/state/(daemon|csi\.sock)|TOKEN_CREATE|bpfvol_try`)

var scenarios = []scenario{
	{name: "publish", act: setUp},
	{name: "pull", attach: "{program: count, xdp: {interface: veth0, priority: 50}}", before: emptyCache, act: setUp, pulls: true, only: has(` cache/`)},
	{name: "publish where nobody is", alone: true, act: setUp, only: has(`/xdp-POINT|XDP`)},
	{name: "unpublish", before: published, act: tearDown, gone: true},
	{name: "unpublish where nobody stays", alone: true, before: published, act: tearDown, gone: true, only: has(`/xdp-POINT|XDP`)},
	{name: "undo of a failed publish", always: []inject.Fault{{Effect: mountTop, Nth: 1, Errno: unix.EIO}}, act: setUp},
	{name: "recovery before a swap", before: killed(swap), act: start, only: not(atEveryStart)},
	{name: "recovery after a swap", before: killed(setReplace), act: start, only: not(atEveryStart)},
	{name: "recovery of a volume that is whole", before: killed(done), act: start},
	{name: "repair of what others took away", before: severed, act: start, only: not(atEveryStart)},
	{name: "first start after a reboot", alone: true, before: rebooted, act: start},
	{name: "publish for a second pod", persistent: true, act: setUp},
	{name: "unpublish for one of two pods", persistent: true, before: published, act: tearDown, gone: true},
	{name: "recovery after a publish for a second pod", persistent: true, before: killed(mountPart), act: start, only: not(atEveryStart)},
}

// visited numbers effects by their names, and takes those at which the scenario's faults are to come. Of writes to a file one
// after another it takes the first, as how many there are depends on the network; and the first BPF token that is asked for,
// as every bpffs of the machine is asked.
func (s scenario) visited(effects []string) (faults []inject.Fault) {
	counts := map[string]int{}
	on, last := len(s.always) == 0, ""
	for _, e := range effects {
		counts[e]++
		again := e == last && (strings.HasPrefix(e, "write ") || e == "bpf TOKEN_CREATE")
		last = e
		if again {
			continue
		}
		if on && (s.only == nil || s.only(e)) {
			faults = append(faults, inject.Fault{Effect: e, Nth: counts[e]})
		}
		on = on || e == s.always[0].Effect && counts[e] == s.always[0].Nth
	}
	return faults
}

// once carries a scenario out, so that what a node and its daemon do only once is done.
func (w *world) once(t *testing.T, s scenario) {
	t.Helper()
	v := w.volumeOf(s)
	defer w.traffic(t).end()
	if s.before != nil {
		s.before(t, w, v)
	}
	for _, call := range []func(context.Context) error{
		func(ctx context.Context) error { return s.act(ctx, w, v) }, v.SetUp, v.TearDown,
	} {
		if err := call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) volumeOf(s scenario) *nodetest.Volume {
	if s.persistent {
		return w.persistent()
	}
	return w.volume(cmp.Or(s.attach, everywhere))
}
