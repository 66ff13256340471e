// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/loader"
	"github.com/bpfvol/bpfvol/verify"
)

func TestPublishRunsAndShowsMaps(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)

	wantCounted(t, req.Target, 3)
	v, err := podfs.Read(req.Target)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Programs) != 1 || v.Programs[0].Point != "tracepoint syscalls/sys_enter_getpgid" {
		t.Errorf("volume.json programs: %+v", v.Programs)
	}
	if !strings.HasPrefix(v.Image.Digest, "sha256:") || v.Signer == "" {
		t.Errorf("volume.json image %+v, signer %q", v.Image, v.Signer)
	}

	if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
		t.Fatal(err)
	}
	f.wantNothing(t, req)
}

// A volume's target is no other volume's, whatever is called there.
func TestTargetOfAnotherVolumeIsLeftAlone(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	other := req
	other.VolumeID = "other"
	if err := f.Publish(f.ctx, other); !errors.Is(err, podfs.ErrTarget) {
		t.Errorf("publish: error is %v, want %v", err, podfs.ErrTarget)
	}
	wantCounted(t, req.Target, 2)
	if err := f.Unpublish(f.ctx, other.VolumeID, req.Target); err != nil {
		t.Errorf("unpublish: %v", err)
	}
	wantCounted(t, req.Target, 2)
}

func TestPublishAgain(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	f.publish(t, req)
	getpgid(t, 1)
	before := hits(t, req.Target)

	if err := f.Publish(f.ctx, req); err != nil {
		t.Errorf("the same request again: %v", err)
	}
	if got := hits(t, req.Target); got < before {
		t.Errorf("the counter went from %d to %d: the program was loaded again", before, got)
	}
	group := 2000
	for what, change := range map[string]func(*Request){
		"attributes": func(r *Request) {
			r.Attributes = maps.Clone(r.Attributes)
			r.Attributes["maps"] = "hits"
		},
		"group":    func(r *Request) { r.Group = &group },
		"readOnly": func(r *Request) { r.ReadOnly = true },
		"context":  func(r *Request) { r.Context = "system_u:object_r:container_file_t:s0" },
	} {
		other := req
		change(&other)
		if err := f.Publish(f.ctx, other); !errors.Is(err, ErrConflict) {
			t.Errorf("other %s: error is %v, want %v", what, err, ErrConflict)
		}
	}
	getpgid(t, 1)
	if got := hits(t, req.Target); got != before+1 {
		t.Errorf("after the refused requests the map counted %d calls, want %d", got, before+1)
	}
}

// Each fails at another effect. What a refusal before the first effect says is shown in e2e/events.
func TestFailedPublishLeavesNothing(t *testing.T) {
	f := newFixture(t)
	hooks, rejected := f.signed(t, "hooks", hooks()), f.signed(t, "rejected", bpf.Rejected())
	for what, c := range map[string]struct {
		image, attach, mapEntries string
		want                      func(error) bool
	}{
		"the verifier rejects": {rejected, "{program: rejected, xdp: {interface: lo}}", "", func(err error) bool { return errors.As(err, new(*loader.VerifierError)) }},
		// More buckets than a hash can have: refused without an attempt to find the memory (htab_map_alloc).
		"no memory for a map":  {hooks, onGetpgid, "{cookies: 2147483648}", isError(syscall.ENOMEM, syscall.E2BIG)},
		"nothing to attach to": {hooks, "{program: on_tracepoint, tracepoint: syscalls/nothing}", "", isError(hook.ErrMissing)},
		"the second of two":    {hooks, "[" + onGetpgid + ", {program: on_uprobe, uprobe: {path: /bin/sh, symbol: nothing}}]", "", isError(hook.ErrMissing)},
	} {
		t.Run(what, func(t *testing.T) {
			req := f.request(t, c.image, c.attach)
			if c.mapEntries != "" {
				req.Attributes["mapEntries"] = c.mapEntries
			}
			if err := f.Publish(f.ctx, req); err == nil || !c.want(err) {
				t.Errorf("error is %v", err)
			}
			f.wantNothing(t, req)
			// The same volume works once what was wrong is right.
			good := f.request(t, hooks, onGetpgid)
			good.VolumeID, good.Target = req.VolumeID, req.Target
			f.publish(t, good)
		})
	}
}

func isError(targets ...error) func(error) bool {
	return func(err error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
}

func TestConcurrentPublishesHaveOneEffect(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	errs := make([]error, 50)
	var calls sync.WaitGroup
	for i := range errs {
		calls.Go(func() { errs[i] = f.Publish(f.ctx, req) })
	}
	calls.Wait()
	t.Cleanup(func() { f.Unpublish(context.WithoutCancel(f.ctx), req.VolumeID, req.Target) })
	succeeded := 0
	for _, err := range errs {
		switch {
		case err == nil:
			succeeded++
		case !errors.Is(err, ErrBusy):
			t.Errorf("error is %v, want none or %v", err, ErrBusy)
		}
	}
	if succeeded == 0 {
		t.Error("no call succeeded")
	}
	wantCounted(t, req.Target, 1)
}

func TestUnpublish(t *testing.T) {
	f := newFixture(t)
	image := f.signed(t, "hooks", hooks())
	unknown := f.request(t, image, onGetpgid)
	if err := f.Unpublish(f.ctx, unknown.VolumeID, unknown.Target); err != nil {
		t.Errorf("a volume that never was: %v", err)
	}

	// While a publish is in flight, the answer is "busy", and afterwards it works.
	req := f.request(t, image, onGetpgid)
	loaded, proceed := make(chan struct{}), make(chan struct{})
	opts := f.opts
	opts.Reached = func(s Stage) {
		if s == StageLoaded {
			close(loaded)
			<-proceed
		}
	}
	slow, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	published := make(chan error)
	go func() { published <- slow.Publish(f.ctx, req) }()
	<-loaded
	if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); !errors.Is(err, ErrBusy) {
		t.Errorf("unpublish of a volume in flight: error is %v, want %v", err, ErrBusy)
	}
	if err := f.Recover(f.ctx); err != nil {
		t.Errorf("recovery beside a publish in flight: %v", err)
	}
	close(proceed)
	if err := <-published; err != nil {
		t.Fatal(err)
	}

	if err := f.Unpublish(f.ctx, req.VolumeID, filepath.Join(f.pods, "elsewhere")); err != nil {
		t.Errorf("unpublish at another path: %v", err)
	}
	hits(t, req.Target) // it still runs
	for _, call := range []string{"first", "second"} {
		if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
			t.Errorf("%s unpublish: %v", call, err)
		}
	}
	f.wantNothing(t, req)
}

func TestIdleEngineHoldsNoBPFObjects(t *testing.T) {
	f := newFixture(t)
	f.publish(t, f.request(t, f.signed(t, "hooks", hooks()), onGetpgid))
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && strings.HasPrefix(target, "anon_inode:bpf") {
			t.Errorf("file descriptor %s is open on %s", fd.Name(), target)
		}
	}
}

func TestGroupOwnsTheFiles(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	group := 2000
	req.Group = &group
	f.publish(t, req)
	for path, want := range map[string]os.FileMode{
		"": 0o750, "volume.json": 0o440, "types.btf": 0o440,
	} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(req.Target, path), &st); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if mode := os.FileMode(st.Mode & 0o777); mode != want || st.Uid != 0 || int(st.Gid) != group {
			t.Errorf("/%s is %v %d:%d, want %v 0:%d", path, mode, st.Uid, st.Gid, want, group)
		}
	}
}

func TestXDPVolumeCountsPackets(t *testing.T) {
	f := newFixture(t)
	image := f.signed(t, "count", bpf.Count())
	a, b := bpftest.Pair(t)
	req := f.request(t, image, "{program: count, xdp: {interface: veth0}}")
	in(t, a, func() error { return f.Publish(f.ctx, req) })
	b.SendUDP(t, a.Addr, 10)

	wantLine(t, req.Target, "flows", `{"saddr":"`+b.Addr.String()+`","protocol":"UDP"},"value":{"packets":10,`)
	if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
		t.Fatal(err)
	}
	f.wantNothing(t, req)
}

// A firewall in one volume, of one image, decides what the counter of another volume, of another image, sees.
func TestVolumesShareAnInterfaceInOrder(t *testing.T) {
	testSharing(t, newFixture(t), dispatcher.Fused, dispatcher.Plain)
}

// testSharing wants programs to go one way with another, and one alone.
func testSharing(t *testing.T, f *fixture, together, alone dispatcher.Way) {
	a, b := bpftest.Pair(t)
	counter := f.request(t, f.signed(t, "count", bpf.Count()), "{program: count, xdp: {interface: veth0, priority: 500}}")
	firewall := f.request(t, f.signed(t, "firewall", bpf.Firewall()), "{program: firewall, xdp: {interface: veth0, priority: 100}}")
	counted := func(want string) {
		t.Helper()
		wantLine(t, counter.Target, "flows", `{"saddr":"`+b.Addr.String()+`","protocol":"UDP"},"value":{"packets":`+want+`,`)
	}

	in(t, a, func() error { return f.Publish(f.ctx, counter) })
	b.SendUDP(t, a.Addr, 10) // to the port that the firewall closes
	counted("10")
	in(t, a, func() error { return f.Publish(f.ctx, firewall) })
	wantOrder(t, f, a, "firewall "+string(together), "count "+string(together))
	b.SendUDP(t, a.Addr, 7)
	wantSum(t, firewall.Target, "dropped", 7)
	counted("10")

	f.restart(t) // a new daemon knows the same
	in(t, a, func() error { return f.Unpublish(f.ctx, firewall.VolumeID, firewall.Target) })
	wantOrder(t, f, a, "count "+string(alone))
	b.SendUDP(t, a.Addr, 5)
	counted("15")
	in(t, a, func() error { return f.Unpublish(f.ctx, counter.VolumeID, counter.Target) })
	f.wantNothing(t, counter)
	f.wantNothing(t, firewall)
}

// wantOrder checks what runs at the only point, in order: "program way".
func wantOrder(t *testing.T, f *fixture, ns *bpftest.NetNS, want ...string) {
	t.Helper()
	var points []PointStatus
	in(t, ns, func() (err error) { points, err = f.Status(); return err })
	var got []string
	for _, p := range points {
		for _, m := range p.Members {
			got = append(got, m.Program+" "+string(m.Way))
		}
	}
	if len(points) != 1 || !slices.Equal(got, want) {
		t.Errorf("%d points, members %q, want one with %q", len(points), got, want)
	}
}

// wantLine waits for words in a map as the pod reads it: a busy kernel takes packets from the receive queue after their
// sender went on.
func wantLine(t *testing.T, target, name, want string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		lines, err := os.ReadFile(filepath.Join(target, "json", name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(lines), want) {
			return
		}
		if time.Now().After(end) {
			t.Errorf("json/%s is %q, want %q in it", name, lines, want)
			return
		}
	}
}

// wantSum waits until the values of element 0 of a per-CPU map add up.
func wantSum(t *testing.T, target, name string, want int) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(target, "json", name))
		if err != nil {
			t.Fatal(err)
		}
		var line struct{ Value []int }
		if err := json.Unmarshal(text, &line); err != nil {
			t.Fatalf("json/%s is %q: %v", name, text, err)
		}
		sum := 0
		for _, n := range line.Value {
			sum += n
		}
		if sum == want {
			return
		}
		if time.Now().After(end) {
			t.Errorf("json/%s adds up to %d, want %d", name, sum, want)
			return
		}
	}
}

// A policy's interfaces are those of the node: which one "@default-route" is, the node says and not the volume.
func TestPolicyJudgesTheInterfaceThatIsMeant(t *testing.T) {
	f := newFixture(t)
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "uplink0", "peer0")
	in(t, ns, func() error {
		for _, args := range []string{"link set peer0 up", "link set uplink0 up", "addr add 10.9.0.1/24 dev uplink0", "route add default via 10.9.0.2"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", args, err, out)
			}
		}
		return nil
	})
	policies := f.opts.Policies.(verify.Static)
	req := f.request(t, f.signed(t, "count", bpf.Count()), "{program: count, xdp: '@default-route'}")
	for interfaces, allowed := range map[string]bool{"peer*": false, "uplink*": true} {
		narrow := *policies[0]
		narrow.Allow.Interfaces = []string{interfaces}
		f.opts.Policies = verify.Static{&narrow}
		f.restart(t)
		in(t, ns, func() error {
			err := f.Publish(f.ctx, req)
			var denied *verify.DeniedError
			switch {
			case allowed && err != nil:
				t.Errorf("policy for %s: %v", interfaces, err)
			case !allowed && (!errors.As(err, &denied) || !strings.Contains(err.Error(), `interface "uplink0"`)):
				t.Errorf("policy for %s: error is %v", interfaces, err)
			}
			return f.Unpublish(f.ctx, req.VolumeID, req.Target)
		})
	}
}

// in calls do inside a network namespace.
func in(t *testing.T, ns *bpftest.NetNS, do func() error) {
	t.Helper()
	if err := ns.Do(do); err != nil {
		t.Fatal(err)
	}
}
