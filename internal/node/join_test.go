// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/host"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
)

// persistent asks for a PersistentVolume that counts getpgid(2), for a first pod.
func (f *fixture) persistent(t testing.TB) Request {
	t.Helper()
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	req.Subject.Persistent = true
	return req
}

// another asks for the same volume, for another pod.
func (f *fixture) another(t testing.TB, req Request) Request {
	t.Helper()
	other := f.request(t, "", "")
	other.VolumeID, other.Attributes, other.Subject = req.VolumeID, req.Attributes, req.Subject
	return other
}

// loaded is how many programs of that name the kernel has.
func loaded(t *testing.T, name string) (n int) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
		prog, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone in the meantime
		}
		if info, err := prog.Info(); err == nil && info.Name == name {
			n++
		}
		prog.Close()
	}
}

func TestTargetsShareWhatRuns(t *testing.T) {
	f := newFixture(t)
	first := f.request(t, f.signed(t, "sections", bpf.Sections()), "["+onGetpgid+", {program: show_tasks, iter: task}]")
	first.Subject.Persistent = true
	f.publish(t, first)
	getpgid(t, 3)
	before, err := f.Status()
	if err != nil {
		t.Fatal(err)
	}
	second, group := f.another(t, first), 2000
	second.Group = &group
	f.publish(t, second)

	if n := loaded(t, "on_tracepoint"); n != 1 {
		t.Errorf("the kernel has the program %d times", n)
	}
	after, err := f.Status()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range after {
		m, was := p.Members[0], before[i].Members[0]
		if len(p.Members) != 1 || m.ProgramID != was.ProgramID || m.LinkID != was.LinkID || len(m.Pods) != 2 {
			t.Errorf("what runs was %+v, and is with a second pod %+v", before[i], p)
		}
	}
	getpgid(t, 4)
	for _, req := range []Request{first, second} {
		if n := allHits(t, req.Target); n[indexOnTracepoint] != 7 {
			t.Errorf("a pod reads %d calls, want 7", n[indexOnTracepoint])
		}
		if text, err := os.ReadFile(filepath.Join(req.Target, "iter", "show_tasks")); err != nil || len(text) == 0 {
			t.Errorf("iter/show_tasks is %q, %v", text, err)
		}
		if n, err := f.Stats(t.Context(), req.VolumeID, req.Target); err != nil || n != 3 {
			t.Errorf("stats: %d files, %v", n, err)
		}
	}
	for target, want := range map[string]string{first.Target: "0:0 0444", second.Target: "0:2000 0440"} {
		for _, name := range []string{"volume.json", "types.btf"} { // the way to the others is through directories of the group
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(target, name), &st); err != nil {
				t.Error(err)
			} else if got := fmt.Sprintf("%d:%d %04o", st.Uid, st.Gid, st.Mode&0o777); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
	}
	var shown [2]podfs.Volume
	for i, req := range []Request{first, second} {
		if shown[i], err = podfs.Read(req.Target); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := fmt.Sprint(shown[0]), fmt.Sprint(shown[1]); a != b {
		t.Errorf("volume.json differs: %s and %s", a, b)
	}
}

// indexOnTracepoint is the program's element of the map hits of bpf.Sections and bpf.Hooks.
const indexOnTracepoint = 0

// What a crash left of one pod's target, and nobody can take away, does not keep other pods from coming.
func TestStuckTargetOfAnotherPodHoldsUpNobody(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	f.publish(t, first)
	stuck := f.another(t, first)
	f.publish(t, stuck)
	rec, err := f.records.read(volume.FileName(first.VolumeID))
	if err != nil {
		t.Fatal(err)
	}
	rec.Target(stuck.Target).State = statePublishing
	if err := f.records.write(rec); err != nil {
		t.Fatal(err)
	}
	if err := podfs.Unmount(stuck.Target); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(stuck.Target, "somebody"), 0o755); err != nil {
		t.Fatal(err)
	}
	third := f.another(t, first)
	f.publish(t, third)
	wantCounted(t, third.Target, 2)
	if err := f.Unpublish(f.ctx, stuck.VolumeID, stuck.Target); !errors.Is(err, ErrTeardown) {
		t.Errorf("the stuck target's unpublish: %v, want %v", err, ErrTeardown)
	}
	remove(t, filepath.Join(stuck.Target, "somebody"))
}

// A record that cannot be read for the moment says nothing about who shares the volume: here by a daemon that keeps no
// capability to read what root may not.
func TestRecordThatCannotBeOpenedTakesNothingFromAnybody(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	f.publish(t, first)
	second, third := f.another(t, first), f.another(t, first)
	f.publish(t, second)
	record := f.records.path(volume.FileName(first.VolumeID))
	if err := os.Chmod(record, 0); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		call func() error
		want error
	}{
		"unpublish": {func() error { return f.Unpublish(f.ctx, second.VolumeID, second.Target) }, ErrTeardown},
		"publish":   {func() error { return f.Publish(f.ctx, third) }, ErrUnreadable},
	} {
		err := host.Process("").OnThread(func() error {
			if err := bpftest.GiveUp(unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH); err != nil {
				return err
			}
			return c.call()
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error is %v, want %v", name, err, c.want)
		}
	}
	if err := os.Chmod(record, 0o600); err != nil {
		t.Fatal(err)
	}
	wantCounted(t, first.Target, 2)
	wantCounted(t, second.Target, 2)
}

// The pod that came first goes while the others use the volume. Who is last takes all of it along.
func TestFirstTargetGoesWhileTheSecondCounts(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	f.publish(t, first)
	second := f.another(t, first)
	f.publish(t, second)

	calls, stop := make(chan int), make(chan struct{})
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				calls <- n
				return
			default:
				unix.Getpgid(0)
				n++
			}
		}
	}()
	for last := uint64(0); last < 1000; {
		last = hits(t, second.Target)
	}
	for range 2 { // kubelet may ask again
		if err := f.Unpublish(f.ctx, first.VolumeID, first.Target); err != nil {
			t.Error(err)
		}
	}
	for last, end := hits(t, second.Target), hits(t, second.Target)+1000; last < end; {
		now := hits(t, second.Target)
		if now < last {
			t.Fatalf("the counter went from %d to %d", last, now)
		}
		last = now
	}
	close(stop)
	if n := <-calls; hits(t, second.Target) != uint64(n) {
		t.Errorf("of %d calls %d were counted", n, hits(t, second.Target))
	}
	if _, err := os.Lstat(first.Target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the first target is still there: %v", err)
	}
	if _, err := f.Stats(t.Context(), first.VolumeID, first.Target); !errors.Is(err, ErrUnknownVolume) {
		t.Errorf("stats of the first target: %v", err)
	}
	if err := f.Unpublish(f.ctx, second.VolumeID, second.Target); err != nil {
		t.Fatal(err)
	}
	f.wantNothing(t, second)
}

func TestSecondTargetNeedsTheSameArguments(t *testing.T) {
	f := newFixture(t)
	group := 2000
	ephemeral := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, ephemeral)
	persistent := f.persistent(t)
	f.publish(t, persistent)
	second := f.another(t, persistent)
	second.Group = &group
	f.publish(t, second)

	if err := f.Publish(f.ctx, second); err != nil {
		t.Errorf("the same again: %v", err)
	}
	for what, c := range map[string]struct {
		of     Request
		change func(*Request)
	}{
		"a second target of an inline volume": {f.another(t, ephemeral), func(*Request) {}},
		"that of a PersistentVolume of an inline volume": {f.another(t, ephemeral), func(r *Request) {
			r.Subject.Persistent = true
		}},
		"that of an inline volume of a PersistentVolume": {f.another(t, persistent), func(r *Request) {
			r.Subject.Persistent = false
		}},
		"other attributes": {f.another(t, persistent), func(r *Request) {
			r.Attributes = maps.Clone(r.Attributes)
			r.Attributes["maps"] = "hits"
		}},
		"another group of the first target":     {persistent, func(r *Request) { r.Group = &group }},
		"another group of the second target":    {second, func(r *Request) { r.Group = nil }},
		"another readOnly of the second target": {second, func(r *Request) { r.ReadOnly = true }},
	} {
		c.change(&c.of)
		if err := f.Publish(f.ctx, c.of); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: error is %v, want %v", what, err, ErrConflict)
		}
	}
	for _, req := range []Request{ephemeral, persistent, second} {
		wantCounted(t, req.Target, 1)
	}
	if n := loaded(t, "on_tracepoint"); n != 2 {
		t.Errorf("the kernel has the program %d times, want 2", n)
	}
}

// Who may have the volume is asked for every pod, and about the bytes that run.
func TestSecondTargetIsDecidedAboutByWhatRuns(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	first.Attributes["pullPolicy"] = "Always"
	f.publish(t, first)

	// The tag moves to an image that nobody signed. It does not run, so it is not judged.
	f.push(t, "hooks", append(hooks(), 0))
	second := f.another(t, first)
	f.publish(t, second)
	wantCounted(t, second.Target, 1)

	other := f.another(t, first)
	other.Subject.ServiceAccount = "other"
	if err := f.Publish(f.ctx, other); !errors.As(err, new(*verify.DeniedError)) {
		t.Errorf("a service account that no policy names: %v", err)
	}
	was := f.opts.Policies
	f.opts.Policies = f.policy(t, f.public, "hooks: [xdp]")
	f.restart(t)
	third := f.another(t, first)
	if err := f.Publish(f.ctx, third); !errors.As(err, new(*verify.DeniedError)) {
		t.Errorf("a policy that does not allow what runs any more: %v", err)
	}
	f.opts.Policies = was
	f.restart(t)

	// An image may have several objects. The one that runs is the one that was judged.
	name := volume.FileName(first.VolumeID)
	rec, err := f.records.read(name)
	if err != nil {
		t.Fatal(err)
	}
	object := rec.Object
	rec.Object = rec.Digest
	if err := f.records.write(rec); err != nil {
		t.Fatal(err)
	}
	if err := f.Publish(f.ctx, third); !errors.Is(err, ErrConflict) {
		t.Errorf("another object: error is %v, want %v", err, ErrConflict)
	}
	rec.Object = object
	if err := f.records.write(rec); err != nil {
		t.Fatal(err)
	}
	for _, req := range []Request{other, third} {
		if _, err := os.Lstat(req.Target); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("target of a refused pod: %v", err)
		}
	}
	for _, req := range []Request{first, second} {
		wantCounted(t, req.Target, 1)
	}
}

// The default route goes elsewhere, and the programs stay where they are: that is what a policy must allow.
func TestSecondTargetIsDecidedAboutByTheInterfaceThatRuns(t *testing.T) {
	f := newFixture(t)
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "old0", "new0")
	ip := func(commands ...string) {
		t.Helper()
		in(t, ns, func() error {
			for _, args := range commands {
				if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
					return fmt.Errorf("ip %s: %w: %s", args, err, out)
				}
			}
			return nil
		})
	}
	ip("link set old0 up", "link set new0 up", "addr add 10.9.0.1/24 dev old0", "addr add 10.8.0.1/24 dev new0", "route add default via 10.9.0.2")
	first := f.request(t, f.signed(t, "count", bpf.Count()), "{program: count, xdp: '@default-route'}")
	first.Subject.Persistent = true
	f.publishIn(t, ns, first)
	ip("route del default", "route add default via 10.8.0.2")
	for interfaces, allowed := range map[string]bool{"new*": false, "old*": true} {
		narrow := *f.opts.Policies.(verify.Static)[0]
		narrow.Allow.Interfaces = []string{interfaces}
		f.opts.Policies = verify.Static{&narrow}
		f.restart(t)
		second := f.another(t, first)
		err := ns.Do(func() error { return f.Publish(f.ctx, second) })
		if allowed {
			f.published(t, second, err)
		} else if !errors.As(err, new(*verify.DeniedError)) || !strings.Contains(err.Error(), `interface "old0"`) {
			t.Errorf("policy for %s: error is %v", interfaces, err)
		}
	}
}

func TestFailedSecondTargetLeavesTheFirst(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	f.publish(t, first)
	name := volume.FileName(first.VolumeID)
	record := func() string {
		t.Helper()
		text, err := os.ReadFile(f.records.path(name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	// A pin that somebody removed, and a directory that goes while the volume is published.
	hidden := filepath.Join(f.opts.BPFFSDir, "hits")
	pin := filepath.Join(f.pins(name), "maps", "hits")
	for what, c := range map[string]struct {
		spoil, mend func(Request) error
		want        error
	}{
		"a pin is gone": {
			func(Request) error { return os.Rename(pin, hidden) },
			func(Request) error { return os.Rename(hidden, pin) },
			fs.ErrNotExist,
		},
		"the pod is gone": {
			func(req Request) error { return os.Remove(filepath.Dir(req.Target)) },
			func(req Request) error { return os.Mkdir(filepath.Dir(req.Target), 0o750) },
			podfs.ErrTarget,
		},
	} {
		second, was := f.another(t, first), record()
		opts := f.opts
		opts.Reached = func(s Stage) {
			if s != StageRecorded {
				return
			}
			if err := c.spoil(second); err != nil {
				t.Error(err)
			}
		}
		spoiled, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := spoiled.Publish(f.ctx, second); !errors.Is(err, c.want) {
			t.Errorf("%s: error is %v, want %v", what, err, c.want)
		}
		if err := c.mend(second); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(second.Target); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the target is there: %v", what, err)
		}
		if now := record(); now != was {
			t.Errorf("%s: the record was %s, and is %s", what, was, now)
		}
		wantCounted(t, first.Target, 1)
		f.publish(t, second)
	}
}

func TestSecondTargetKilledAfterEachStage(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	f.publish(t, first)
	for _, stage := range []Stage{StageRecorded, StageMounted, StagePublished} {
		for _, restarts := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, restart %v", stage, restarts), func(t *testing.T) {
				second := f.another(t, first)
				f.dies(t, stage, second)
				wantCounted(t, first.Target, 1)
				if restarts {
					f.restart(t)
					_, err := os.Lstat(second.Target)
					if gone := errors.Is(err, fs.ErrNotExist); gone != (stage != StagePublished) {
						t.Errorf("after recovery the target: %v", err)
					}
				}
				f.publish(t, second) // kubelet tries again
				wantCounted(t, first.Target, 1)
				wantCounted(t, second.Target, 1)
				if n := loaded(t, "on_tracepoint"); n != 1 {
					t.Errorf("the kernel has the program %d times", n)
				}
			})
		}
	}
}

// Both pods are deleted after a kill while the second one's target was published: the half one is nobody's.
func TestLastWholeTargetTakesTheHalfOneAlong(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	f.publish(t, first)
	second := f.another(t, first)
	f.dies(t, StageMounted, second)
	if err := f.Unpublish(f.ctx, first.VolumeID, first.Target); err != nil {
		t.Fatal(err)
	}
	f.wantNothing(t, first)
	f.wantNothing(t, second)
}

// One pod's mount went away under it.
func TestUnmountedTargetLeavesTheOther(t *testing.T) {
	f := newFixture(t)
	first := f.persistent(t)
	f.publish(t, first)
	second := f.another(t, first)
	f.publish(t, second)
	if err := unix.Unmount(first.Target, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	health, err := f.Health(t.Context(), first.VolumeID, "")
	if err != nil || health.String() != "it is not mounted at 1 of its 2 targets" {
		t.Errorf("health is %q, %v", health, err)
	}
	f.restart(t)
	wantCounted(t, second.Target, 2)
	volumes, err := f.List()
	if err != nil || len(volumes) != 1 || len(volumes[0].Targets) != 1 || !volumes[0].Health.Healthy {
		t.Errorf("after recovery: %+v, %v", volumes, err)
	}
	f.publish(t, first)
	if err := unix.Unmount(first.Target, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	before := hits(t, second.Target)
	f.publish(t, first) // without a restart, too
	if now := hits(t, first.Target); now < before {
		t.Errorf("the counter went from %d to %d", before, now)
	}
}

// A Deployment's pods start at the same moment.
func TestPodsOfAVolumeStartAtOnce(t *testing.T) {
	f := newFixture(t)
	requests := []Request{f.persistent(t)}
	for len(requests) < 10 {
		requests = append(requests, f.another(t, requests[0]))
	}
	errs := make([]error, len(requests))
	var calls sync.WaitGroup
	for i, req := range requests {
		calls.Go(func() {
			// On a slow machine the last one's patience ends before its turn, and kubelet asks again.
			for errs[i] = ErrBusy; errors.Is(errs[i], ErrBusy); {
				errs[i] = f.Publish(f.ctx, req)
			}
		})
	}
	calls.Wait()
	for i, req := range requests {
		f.published(t, req, errs[i])
	}
	if n := loaded(t, "on_tracepoint"); n != 1 {
		t.Errorf("the kernel has the program %d times", n)
	}
	for _, req := range requests {
		wantCounted(t, req.Target, 1)
	}
}

// What was attached is found by all that was asked for but the interface, which may be called otherwise now.
func TestPointsOfARecordAreThoseThatWereMade(t *testing.T) {
	asked, err := volume.ParseAttach(`[
		{program: count, xdp: '@default-route'}, {program: count, xdp: {interface: eth1, priority: 100}},
		{program: count, tc: {interface: [eth2, eth3], direction: egress}}, {program: other, xdp: eth4},
		{program: count, tracepoint: sched/sched_switch}]`)
	if err != nil {
		t.Fatal(err)
	}
	made := &decided{}
	for i, names := range [][]string{{"eth0"}, {"eth1"}, {"eth2", "eth3"}, {"eth4"}, nil} {
		for _, name := range names {
			made.members = append(made.members, member{program: asked[i].Program, hook: onInterfaces(asked[i].Hook, []string{name})})
		}
		if names == nil {
			made.members = append(made.members, member{program: asked[i].Program, hook: asked[i].Hook})
		}
	}
	rec := &Record{Attachments: made.attachments()}
	for i, want := range []string{"[eth0]", "[eth1]", "[eth2 eth3]", "[eth4]"} {
		points, err := rec.points(t.Context(), asked[i])
		var names []string
		for _, p := range points {
			names = append(names, p.Interface)
		}
		if got := fmt.Sprint(names); got != want || err != nil {
			t.Errorf("attachment %d was made at %s, want %s: %v", i, got, want, err)
		}
	}
	asked[0].Program = "unknown"
	if _, err := rec.points(t.Context(), asked[0]); !errors.Is(err, ErrConflict) {
		t.Errorf("what was never attached: error is %v, want %v", err, ErrConflict)
	}
}
