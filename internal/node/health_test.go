// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Interfaces and namespaces that are deleted or renamed: see cmd/bpfvol/testdata/health.txtar.
func TestHealthSaysWhatIsWrong(t *testing.T) {
	const xdp, onTrace = "{program: count, xdp: veth0}", "{program: on_exec, tracepoint: syscalls/sys_enter_execve}"
	for name, c := range map[string]struct {
		spoil func(t *testing.T, f *fixture, req Request)
		want  []Problem
	}{
		"nothing": {func(*testing.T, *fixture, Request) {}, nil},
		"somebody detached a program": {func(t *testing.T, f *fixture, _ Request) {
			l, err := link.LoadPinnedLink(firstPin(t, f, "points/*/link"), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := l.Detach(); err != nil {
				t.Fatal(err)
			}
		}, []Problem{{LinkSevered, "xdp veth0: nothing runs: somebody detached it"}}},
		"the link of a point is gone": {func(t *testing.T, f *fixture, _ Request) {
			remove(t, firstPin(t, f, "points/*/link"))
		}, []Problem{{LinkSevered, "xdp veth0: nothing runs: somebody detached it"}}},
		"a member is gone": {func(t *testing.T, f *fixture, req Request) {
			if err := f.points.Detach(t.Context(), volume.FileName(req.VolumeID)); err != nil {
				t.Fatal(err)
			}
		}, []Problem{{LinkSevered, `xdp veth0: program "count" does not run: nothing of it is attached there`}}},
		"a link is gone": {func(t *testing.T, f *fixture, _ Request) {
			remove(t, firstPin(t, f, "volumes/*/links/*"))
		}, []Problem{{LinkSevered, `tracepoint syscalls/sys_enter_execve: program "on_exec" does not run: nothing of it is attached there`}}},
		"the target is unmounted": {func(t *testing.T, _ *fixture, req Request) {
			if err := unix.Unmount(req.Target, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}, []Problem{{NotMounted, "it is not mounted at its target"}}},
		"a publish was cut short": {func(t *testing.T, f *fixture, req Request) {
			rec, err := f.records.read(volume.FileName(req.VolumeID))
			if err != nil {
				t.Fatal(err)
			}
			rec.State = statePublishing
			if err := f.records.write(rec); err != nil {
				t.Fatal(err)
			}
		}, []Problem{{Unpublished, "it is being published, or a crash cut that short"}}},
		"the record cannot be read": {func(t *testing.T, f *fixture, req Request) {
			if err := os.WriteFile(f.records.path(volume.FileName(req.VolumeID)), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []Problem{{RecordUnreadable, "record: cannot be read: it is no JSON; delete the pod to take the volume away"}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			ns, _ := bpftest.Pair(t)
			req := f.request(t, f.signed(t, "count", bpf.Count()), "["+xdp+", "+onTrace+"]")
			other := f.request(t, req.Attributes["image"], onTrace)
			f.publishIn(t, ns, req)
			f.publish(t, other)
			c.spoil(t, f, req)
			want := Health{Healthy: c.want == nil, Problems: c.want}
			in(t, ns, func() error {
				got, err := f.Health(t.Context(), req.VolumeID, "")
				if err != nil {
					return err
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("health (-want +got):\n%s", diff)
				}
				return nil
			})
			if got, err := f.Health(t.Context(), other.VolumeID, ""); err != nil || !got.Healthy {
				t.Errorf("health of another volume is %v, %v", got, err)
			}
		})
	}
}

// firstPin is the first pin of a pattern; that of the first volume.
func firstPin(t *testing.T, f *fixture, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(f.opts.BPFFSDir, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %q, %v", pattern, paths, err)
	}
	return paths[0]
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestInterfaceThatMovedIsAProblem(t *testing.T) {
	f := newFixture(t)
	ns, other := bpftest.NewNetNS(t), bpftest.NewNetNS(t)
	ns.Veth(t, "lan0", "peer0")
	req := f.request(t, f.signed(t, "count", bpf.Count()), "{program: count, xdp: lan0}")
	f.publishIn(t, ns, req)
	in(t, ns, func() error {
		l, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		there, err := os.Open(other.Path())
		if err != nil {
			return err
		}
		defer there.Close()
		return netlink.LinkSetNsFd(l, int(there.Fd()))
	})
	want := Health{Problems: []Problem{{InterfaceMoved, "xdp lan0: the interface moved to another network namespace, and what runs there with it"}}}
	in(t, ns, func() error {
		got, err := f.Health(t.Context(), req.VolumeID, "")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("health (-want +got):\n%s", diff)
		}
		return err
	})
}

// A program at two interfaces still runs at one. It is not healthy, and what runs is not said to be wrong.
func TestOneDeadInterfaceOfTwo(t *testing.T) {
	f := newFixture(t)
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "lan0", "peer0")
	ns.Veth(t, "lan1", "peer1")
	req := f.request(t, f.signed(t, "count", bpf.Count()), "{program: count, xdp: {interface: [lan0, lan1]}}")
	f.publishIn(t, ns, req)
	// Renamed, the one that goes on running is still known.
	in(t, ns, func() error {
		for _, args := range []string{"link set lan1 down", "link set lan1 name wan1", "link del lan0"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", args, err, out)
			}
		}
		return nil
	})
	want := Health{Problems: []Problem{{InterfaceGone, "xdp lan0: nothing runs: the interface is gone"}}}
	in(t, ns, func() error {
		got, err := f.Health(t.Context(), req.VolumeID, "")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("health (-want +got):\n%s", diff)
		}
		return err
	})
}

func TestHealthOfUnknownVolume(t *testing.T) {
	if _, err := newFixture(t).Health(t.Context(), "csi-1", ""); !errors.Is(err, ErrUnknownVolume) {
		t.Errorf("error is %v, want %v", err, ErrUnknownVolume)
	}
}
