// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/e2e/crash/inject"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

var all = flag.Bool("all", false, "visit every effect, not a sample, several scenarios at once, and let the loop run for all of its pods")

// sample says that one of so many effects is visited when not all are.
const sample = 20

// maxFailed is how many cases of a scenario may fail before the rest is left out.
const maxFailed = 8

// Each scenario is carried out once to see its effects, and then once for each effect and kind of fault.
func TestFaultAtEveryEffect(t *testing.T) {
	if !*shared {
		bpftest.NothingLeft(t)
	}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			if *all && !*update { // a case mostly waits: for the kernel to free what nobody uses, for packets, for processes to end
				t.Parallel()
			}
			w := newWorld(t, supervised)
			if !s.alone {
				w.settleNeighbour(t)
			}
			if s.persistent {
				w.settleOther(t)
			}
			w.settle(t)
			w.once(t, s)
			w.run(t, s, nil)
			visit := s.visited(w.run(t, s, nil))
			compareWithList(t, s.name, visit)
			failed := 0
			try := func(kind string, f inject.Fault) {
				name := strings.ReplaceAll(fmt.Sprintf("%s %s %d", kind, f.Effect, f.Nth), "/", ":")
				if t.Run(name, func(t *testing.T) { w.run(t, s, &f) }) {
					return
				}
				if failed++; failed == maxFailed {
					t.Fatal("so many are enough")
				}
				w.restart(t)
			}
			for i, e := range visit {
				if *all || i%sample == 0 {
					try("kill", e)
					e.Errno = errnoOf(e.Effect)
					try("error", e)
				}
			}
			if unknown := w.faults.Unknown(); len(unknown) > 0 {
				t.Errorf("system calls %q are neither in harmless nor in known of e2e/crash/inject: say whether they change something", unknown)
			}
		})
	}
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

// run carries a scenario out, with a fault or without, and returns its effects. Then comes what a node does: the daemon is
// started again if it ended, and kubelet tries again until it has what it wanted. In the end everything is as it was.
func (w *world) run(t *testing.T, s scenario, fault *inject.Fault) (effects []string) {
	t.Helper()
	v := w.volumeOf(s)
	flow, before := w.traffic(t), w.rest(t)
	records := w.records(t)
	var late, early []func(*state) // what is left out in the end, and before
	if s.pulls {
		late, early = []func(*state){connections}, []func(*state){connections, cached}
	}
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
	if fault != nil && fault.Errno != 0 && strings.Contains(fault.Effect, lockFiles) {
		w.restart(t)
	}
	dead := fault != nil && fault.Errno == 0
	if dead || !w.Running() {
		w.restart(t)
		if !s.persistent && slices.Equal(w.records(t), records) {
			w.want(t, "after the restart, without a record", before, append(early, pods)...)
		}
	}
	var failed *kubelet.MountError
	if errors.As(err, &failed) && !dead && failed.Status.Code() != codes.Aborted {
		// The answer promises that nothing is left, and kubelet will not ask again if the code is final.
		if !failed.Final() {
			early = append(early, pods)
		}
		w.want(t, fmt.Sprintf("after %v", err), before, early...)
	}
	if !s.gone {
		w.retry(t, v.SetUp)
		w.wantView(t, v)
	}
	w.retry(t, v.TearDown)
	w.want(t, "in the end", before, late...)
	w.wantAllCounted(t, flow)
	return effects
}

// records are the files that say which volumes there are. A restarted daemon knows a volume, or nothing of it is left.
func (w *world) records(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(w.StateDir(), "volumes", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// retry is kubelet, with less patience between its calls and in the end: what went wrong once must not go wrong for long.
func (w *world) retry(t *testing.T, call func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for ; ; time.Sleep(5 * time.Millisecond) {
		err := call(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}
