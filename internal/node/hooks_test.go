// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// connectToNobody has the namespace look for a socket, send a packet, and refuse it.
func connectToNobody(t *testing.T, ns *bpftest.NetNS) {
	t.Helper()
	err := ns.Do(func() error {
		c, err := net.Dial("tcp4", "127.0.0.1:9")
		if err == nil {
			c.Close()
		}
		return err
	})
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("connect: %v, want it refused", err)
	}
}

// An object whose sections say all needs no attribute beside the image.
func TestObjectAttachesWhereItsSectionsSay(t *testing.T) {
	f := newFixture(t)
	ns := bpftest.NewNetNS(t)
	req := f.request(t, f.signed(t, "sections", bpf.Sections()), "")
	delete(req.Attributes, "attach")
	err := ns.Do(func() error { return f.Publish(f.ctx, req) })
	bpftest.SkipIfForbidden(t, err)
	bpftest.SkipIfNotSupported(t, err)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
			t.Error(err)
		}
	})

	if _, err := unix.Getpgid(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("/bin/sh", "-c", "exit 0").Run(); err != nil {
		t.Fatal(err)
	}
	connectToNobody(t, ns)
	if _, err := os.ReadFile(filepath.Join(req.Target, "iter", "show_tasks")); err != nil {
		t.Error(err)
	}
	for i, n := range allHits(t, req.Target) {
		if n == 0 {
			t.Errorf("the program with index %d did not run", i)
		}
	}

	points, err := f.Status()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range points {
		for _, m := range p.Members {
			if m.LinkID == 0 || m.ProgramID == 0 {
				t.Errorf("%s: %+v has no link", p.Point, m)
			}
			got = append(got, p.Point+" "+m.Program)
		}
	}
	slices.Sort(got)
	const malloc = " /usr/lib/x86_64-linux-gnu/libc.so.6:malloc "
	want := []string{
		"fentry security_task_getpgid on_fentry", "fexit security_task_getpgid on_fexit", "iter task show_tasks",
		"kprobe security_task_getpgid on_kprobe", "kretprobe security_task_getpgid on_kretprobe", "lsm task_getpgid on_lsm",
		"rawTracepoint sys_enter on_raw_tracepoint", "rawTracepoint sys_enter on_tp_btf", "skLookup on_sk_lookup",
		"tracepoint syscalls/sys_enter_getpgid on_tracepoint", "uprobe" + malloc + "on_uprobe", "uretprobe" + malloc + "on_uretprobe",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestIteratorIsAFileOfTheVolume(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "sections", bpf.Sections()), "{program: show_tasks, iter: task}")
	f.publish(t, req)
	text, err := os.ReadFile(filepath.Join(req.Target, "iter", "show_tasks"))
	if err != nil {
		t.Fatal(err)
	}
	if own := fmt.Sprintf("%d ", os.Getpid()); !strings.Contains(string(text), own) {
		t.Errorf("iter/show_tasks is %q, want a line that begins with %q", text, own)
	}
	points, err := f.Status()
	if err != nil {
		t.Fatal(err)
	}
	if len(points) != 1 || points[0].Point != "iter task" || len(points[0].Members) != 1 || points[0].Members[0].LinkID == 0 {
		t.Errorf("status is %+v", points)
	}
	f.restart(t)
	if _, err := os.ReadFile(filepath.Join(req.Target, "iter", "show_tasks")); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := f.Publish(f.ctx, req); err != nil {
		t.Errorf("the same request again: %v", err)
	}
	if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
		t.Fatal(err)
	}
	f.wantNothing(t, req)
}

func TestHooksOfTheNetworkEndWithTheVolume(t *testing.T) {
	bpftest.SkipOnOldKernel(t, "6.4", "netfilter programs")
	f := newFixture(t)
	ns := bpftest.NewNetNS(t)
	req := f.request(t, f.signed(t, "network", bpf.Network()), "{program: on_netfilter, netfilter: {family: ipv4, hook: localOut}}")
	in(t, ns, func() error { return f.Publish(f.ctx, req) })
	connectToNobody(t, ns)
	if hits(t, req.Target) == 0 {
		t.Error("the program did not run")
	}
	second := f.request(t, req.Attributes["image"], "{program: on_netfilter, netfilter: {family: ipv4, hook: localOut, priority: 2}}")
	in(t, ns, func() error { return f.Publish(f.ctx, second) })
	before := hits(t, req.Target)
	connectToNobody(t, ns)
	if hits(t, second.Target) == 0 || hits(t, req.Target) == before {
		t.Errorf("of two programs the first ran %d times, the second %d", hits(t, req.Target)-before, hits(t, second.Target))
	}
	for _, r := range []Request{req, second} {
		if err := f.Unpublish(f.ctx, r.VolumeID, r.Target); err != nil {
			t.Fatal(err)
		}
	}
	f.wantNothing(t, req)
	f.wantNothing(t, second)
}

// A pod's network namespace can be gone before its volume is.
func TestUnpublishAfterItsNetworkNamespace(t *testing.T) {
	f := newFixture(t)
	req := f.request(t, f.signed(t, "sections", bpf.Sections()), "{program: on_sk_lookup, skLookup: {}}")
	t.Run("namespace", func(t *testing.T) { // which ends with this
		ns := bpftest.NewNetNS(t)
		in(t, ns, func() error { return f.Publish(f.ctx, req) })
		connectToNobody(t, ns)
		if all := allHits(t, req.Target); all[11] == 0 {
			t.Errorf("the program did not run: %v", all)
		}
	})
	if _, err := f.Status(); err != nil {
		t.Error(err)
	}
	if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
		t.Fatal(err)
	}
	f.wantNothing(t, req)
}

func TestNetkitVolume(t *testing.T) {
	a, b := bpftest.Netkit(t)
	f := newFixture(t)
	in(t, a, func() error {
		device := &netlink.Netkit{LinkAttrs: netlink.LinkAttrs{Name: "nk2"}, Mode: netlink.NETKIT_MODE_L3}
		device.SetPeerAttrs(&netlink.LinkAttrs{Name: "nk3"})
		return netlink.LinkAdd(device)
	})
	req := f.request(t, f.signed(t, "network", bpf.Network()), `
- {program: on_netkit, netkit: {interface: [nk0, nk2]}}
- {program: on_netkit_peer, netkit: {interface: nk0, peer: true}}
`)
	in(t, a, func() error { return f.Publish(f.ctx, req) })
	a.SendUDP(t, b.Addr, 3)
	b.SendUDP(t, a.Addr, 4)
	// The answers that nobody is there go the other way.
	if all := allHits(t, req.Target); all[1] < 3 || all[2] < 4 {
		t.Errorf("the device counted %d packets and its peer %d, want 3 and 4 at least", all[1], all[2])
	}
	points, err := f.Status()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range points {
		got = append(got, p.Point)
	}
	if diff := cmp.Diff([]string{"netkit nk0", "netkit nk0 peer", "netkit nk2"}, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	in(t, a, func() error {
		nk0, err := netlink.LinkByName("nk0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(nk0)
	})
	if _, err := f.Status(); err != nil {
		t.Errorf("status after the device is gone: %v", err)
	}
	if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
		t.Fatal(err)
	}
	f.wantNothing(t, req)
}
