// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/e2e/crash/inject"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

// scenario is something that the daemon does for a volume, in which a fault can happen.
type scenario struct {
	name string
	// persistent says that the volume is a PersistentVolume, which another pod has all the time.
	persistent bool
	// before brings about what act needs. It leaves the daemon running, unless act starts it.
	before func(*testing.T, *world, *nodetest.Volume)
	// always are faults that are part of the scenario, of which only the effects after the first are visited.
	always []inject.Fault
	act    func(context.Context, *world, *nodetest.Volume) error
	// only is what the effects that are visited have in their names; empty: all are.
	only string
	// gone says that the volume is to be gone when act has succeeded.
	gone bool
}

func setUp(ctx context.Context, _ *world, v *nodetest.Volume) error    { return v.SetUp(ctx) }
func tearDown(ctx context.Context, _ *world, v *nodetest.Volume) error { return v.TearDown(ctx) }

// start starts a daemon that was killed.
func start(ctx context.Context, w *world, _ *nodetest.Volume) error {
	if _, err := w.Stack.StartDaemon(ctx); err != nil {
		return err
	}
	return w.Connect(ctx)
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
	swap       = "bpf LINK_UPDATE"
	setReplace = "renameat bpffs/points/xdp-POINT/next-set to bpffs/points/xdp-POINT/set"
	lockFile   = "run/state/locks/VOLUME"
	done       = "unlinkat " + lockFile
)

var scenarios = []scenario{
	{name: "publish", act: setUp},
	{name: "unpublish", before: published, act: tearDown, gone: true},
	{name: "undo of a failed publish", always: []inject.Fault{{Effect: mountTop, Nth: 1, Errno: unix.EIO}}, act: setUp},
	{name: "recovery before a swap", before: killed(swap), act: start},
	{name: "recovery after a swap", before: killed(setReplace), act: start},
	{name: "recovery of a volume that is whole", before: killed(done), act: start},
}

var all = flag.Bool("all", false, "visit every effect, not a sample, and let the loop run for all of its pods")

// sample says that one of so many effects is visited when not all are.
const sample = 20

// maxFailed is how many cases of a scenario may fail before the rest is left out.
const maxFailed = 8

// Each scenario is carried out once to see its effects, and then once for each effect and kind of fault.
func TestFaultAtEveryEffect(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			w := newWorld(t, supervised)
			if s.persistent {
				other := w.persistent()
				published(t, w, other)
				defer func() {
					w.wantView(t, other)
					w.retry(t, other.TearDown)
				}()
			}
			w.once(t, s)
			w.run(t, s, nil)
			visit := s.visited(w.run(t, s, nil))
			compareWithList(t, s.name, visit)
			failed := 0
			for i, e := range visit {
				if !*all && i%sample != 0 {
					continue
				}
				name := strings.ReplaceAll(fmt.Sprintf("%s %d", e.Effect, e.Nth), "/", ":")
				for kind, errno := range map[string]unix.Errno{"error": errnoOf(e.Effect), "kill": 0} {
					e.Errno = errno
					if !t.Run(kind+" "+name, func(t *testing.T) { w.run(t, s, &e) }) {
						if failed++; failed == maxFailed {
							t.Fatal("so many are enough")
						}
						w.restart(t)
					}
				}
			}
			if unknown := w.faults.Unknown(); len(unknown) > 0 {
				t.Errorf("system calls %q are neither in harmless nor in known of e2e/crash/inject: say whether they change something", unknown)
			}
		})
	}
}

// visited numbers effects by their names, and takes those at which the scenario's faults are to come.
func (s scenario) visited(effects []string) (faults []inject.Fault) {
	counts := map[string]int{}
	on := len(s.always) == 0
	for _, e := range effects {
		counts[e]++
		if on && strings.Contains(e, s.only) {
			faults = append(faults, inject.Fault{Effect: e, Nth: counts[e]})
		}
		on = on || e == s.always[0].Effect && counts[e] == s.always[0].Nth
	}
	return faults
}

// errnoOf is an error that the system call can have. The first two are not final for kubelet, the last is.
func errnoOf(effect string) unix.Errno {
	call, _, _ := strings.Cut(effect, " ")
	switch call {
	case "bpf", "perf_event_open":
		return unix.ENOMEM
	case "openat", "write", "fsync", "mkdirat":
		return unix.ENOSPC
	}
	return unix.EIO
}

// once carries a scenario out, so that what a node and its daemon do only once is done.
func (w *world) once(t *testing.T, s scenario) {
	t.Helper()
	v := w.volumeOf(s)
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
	return w.volume()
}

// run carries a scenario out, with a fault or without, and returns its effects. Then comes what a node does: the daemon is
// started again if it ended, and kubelet tries again until it has what it wanted. In the end everything is as it was.
func (w *world) run(t *testing.T, s scenario, fault *inject.Fault) (effects []string) {
	t.Helper()
	v := w.volumeOf(s)
	flow, before := w.traffic(t), w.rest(t)
	if s.before != nil {
		s.before(t, w, v)
	}
	faults := s.always
	if fault != nil {
		faults = append([]inject.Fault{*fault}, faults...)
	}
	w.faults.Watch(faults...)
	err := s.act(t.Context(), w, v)
	effects, hit := w.faults.Done()
	switch {
	case fault == nil:
		if (err != nil) != (len(s.always) > 0) {
			t.Fatal(err)
		}
	case !hit[*fault]:
		t.Fatalf("the fault did not come; there were the effects\n%s", strings.Join(effects, "\n"))
	}
	// A lock that cannot be taken or let go leaves its file, which locks nothing, until the daemon starts again.
	if fault != nil && fault.Errno != 0 && strings.HasSuffix(fault.Effect, lockFile) {
		w.restart(t)
	}
	dead := fault != nil && fault.Errno == 0
	if dead || !w.Running() {
		w.restart(t)
	}
	var failed *kubelet.MountError
	if errors.As(err, &failed) && !dead && failed.Status.Code() != codes.Aborted {
		// The answer promises that nothing is left, and kubelet will not ask again if the code is final.
		if failed.Final() {
			w.want(t, fmt.Sprintf("after %v", err), before)
		} else {
			w.want(t, fmt.Sprintf("after %v", err), before, pods)
		}
	}
	if !s.gone {
		w.retry(t, v.SetUp)
		w.wantView(t, v)
	}
	w.retry(t, v.TearDown)
	w.want(t, "in the end", before)
	w.wantAllCounted(t, flow)
	return effects
}

// retry is kubelet, which calls until it is answered well. What went wrong once must not go wrong for long.
func (w *world) retry(t *testing.T, call func(context.Context) error) {
	t.Helper()
	if err := call(t.Context()); err != nil {
		t.Fatal(err)
	}
}
