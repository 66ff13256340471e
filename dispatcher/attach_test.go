// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestDropStopsPacketsAndPassLetsThemThrough(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		c := carriers[w.carrier]
		if err := w.ping(); err != nil {
			t.Fatalf("before: %v", err)
		}
		pass, passed := w.program(t, "pass", c.pass)
		w.mustAttach(t, first, pass)
		if err := w.ping(); err != nil {
			t.Errorf("pass: %v", err)
		}
		if n := counted(t, passed, 1); n == 0 {
			t.Error("pass met no packet")
		}
		w.mustDetach(t, first.Volume)

		drop, dropped := w.program(t, "drop", c.drop)
		w.mustAttach(t, second, drop)
		if err := w.ping(); !errors.Is(err, bpftest.ErrNoReply) {
			t.Errorf("drop: ping says %v, want no reply", err)
		}
		if n := counted(t, dropped, 1); n == 0 {
			t.Error("drop met no packet")
		}
		w.mustDetach(t, second.Volume)
		if err := w.ping(); err != nil {
			t.Errorf("after: %v", err)
		}
	})
}

func TestDetachedProgramSeesNoPacket(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, packets := w.program(t, "count", carriers[w.carrier].pass)
		w.mustAttach(t, first, prog)
		w.send(t, 10)
		if n := counted(t, packets, 10); n < 10 {
			t.Errorf("%d packets, want 10", n)
		}
		w.mustDetach(t, first.Volume)
		n := count(t, packets)
		w.send(t, 10)
		if now := count(t, packets); now != n {
			t.Errorf("%d packets after Detach", now-n)
		}
		w.mustAttach(t, second, prog)
		w.mustDetach(t, second.Volume)
	})
}

func TestAttachAgainChangesNothing(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, _ := w.program(t, "count", carriers[w.carrier].pass)
		was := w.mustAttach(t, first, prog)
		before, err := w.Status()
		if err != nil {
			t.Fatal(err)
		}
		var effects []string
		w.step = func(name string) { effects = append(effects, name) }
		now := w.mustAttach(t, first, prog)
		w.step = nil
		if len(effects) > 0 {
			t.Errorf("effects: %v", effects)
		}
		if was != now {
			t.Errorf("attachment is %v, was %v", now, was)
		}
		after, err := w.Status()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("status changed (-before +after):\n%s", diff)
		}
		w.mustDetach(t, first.Volume)
	})
}

// What a restarted daemon does: the same member comes with a program loaded anew. Packets flow meanwhile, and each must
// meet the old program or the new one.
func TestNewProgramReplacesWithoutGap(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		pass := carriers[w.carrier].pass
		old, oldPackets := w.program(t, "old", pass)
		w.mustAttach(t, first, old)

		var stop atomic.Bool
		var sent uint64
		var wg sync.WaitGroup
		wg.Go(func() {
			for !stop.Load() {
				w.send(t, 100)
				sent += 100
			}
		})
		changed := first
		changed.Priority = 77
		time.Sleep(20 * time.Millisecond)
		again, againPackets := w.program(t, "new", pass)
		w.mustAttach(t, changed, again)
		time.Sleep(20 * time.Millisecond)
		stop.Store(true)
		wg.Wait()

		met := []uint64{count(t, oldPackets), 0}
		met[1] = counted(t, againPackets, sent-min(sent, met[0]))
		if met[0] == 0 || met[1] == 0 || met[0]+met[1] < sent {
			t.Errorf("old and new program met %v of %d packets", met, sent)
		}
		st, err := w.Status()
		if err != nil {
			t.Fatal(err)
		}
		if got := st[0].Members[0]; got.Priority != 77 || got.Loaded.Name != "new" || st[0].Program.Name != "new" {
			t.Errorf("status after replacement: %+v", st[0])
		}
		w.mustDetach(t, first.Volume)
	})
}

func TestConcurrentAttachLetsAllIn(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, packets := w.program(t, "count", carriers[w.carrier].pass)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				m := Member{Volume: "v" + string(rune('a'+i)), Program: "count", ProceedOn: proceedOnPass(w)}
				if _, err := w.attach(m, prog); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		n := count(t, packets)
		w.send(t, 5)
		if now := counted(t, packets, n+8*5); now < n+8*5 {
			t.Errorf("%d runs for 5 packets, want 40", now-n)
		}
		for i := range 8 {
			w.mustDetach(t, "v"+string(rune('a'+i)))
		}
	})
}

// Points come and go under the feet of others that use the same one.
func TestConcurrentAttachAndDetachEndClean(t *testing.T) {
	w := newWorld(t, "clsact") // the quickest
	prog, _ := w.program(t, "count", 0)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			m := Member{Volume: "v" + string(rune('a'+i)), Program: "count"}
			for range 20 {
				if _, err := w.attach(m, prog); err != nil {
					t.Error(err)
				}
				if err := w.Detach(context.Background(), m.Volume); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestWaitForLockEndsWithContext(t *testing.T) {
	w := newWorld(t, "xdp")
	prog, _ := w.program(t, "count", 2)
	s, err := w.open(context.Background(), w.point, true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err = w.here.Do(func() error {
		_, err := w.Attach(ctx, w.point, volume.XDPAuto, first, prog)
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v, want deadline exceeded", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	w.mustDetach(t, first.Volume)
}

func TestAttachRefusesWrongArguments(t *testing.T) {
	w := newWorld(t, "xdp")
	prog, _ := w.program(t, "count", 2)
	filter, _, err := newProgram(ebpf.SchedCLS, "filter", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer filter.Close()
	elsewhere, kind, index := w.point, w.point, w.point
	elsewhere.NetNS++
	kind.Kind = volume.KindTracepoint
	index.IfIndex = 1 << 20
	for _, c := range []struct {
		p    Point
		m    Member
		prog Program
		want string
	}{
		{w.point, first, filter, `xdp veth0: program "count" is of type SchedCLS, the hook needs XDP`},
		{elsewhere, first, prog, "another network namespace"},
		{kind, first, prog, "not a hook of an interface"},
		{index, first, prog, `interface "veth0" does not exist`},
		{w.point, Member{Volume: "../x", Program: "count"}, prog, "not a name"},
		{w.point, Member{Volume: "x"}, prog, "not a name"},
	} {
		err := w.here.Do(func() error {
			_, err := w.Attach(context.Background(), c.p, volume.XDPAuto, c.m, c.prog)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v %v: error is %v, want %q", c.p, c.m, err, c.want)
		}
	}
	if err := w.Detach(context.Background(), "../x"); err == nil {
		t.Error("Detach of a path succeeded")
	}
	elsewhereDir := New(t.TempDir()+"/points", Options{})
	err = w.here.Do(func() error {
		_, err := elsewhereDir.Attach(context.Background(), w.point, volume.XDPAuto, first, prog)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "not on a bpffs") {
		t.Errorf("error is %v, want: not on a bpffs", err)
	}
	if left := tree(t, elsewhereDir.root); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := os.Remove(elsewhereDir.root); err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
}
