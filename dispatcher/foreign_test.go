// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestForeignXDPProgramStays(t *testing.T) {
	byNetlink := func(flags int) func(w *world, prog *ebpf.Program) (func() error, error) {
		return func(w *world, prog *ebpf.Program) (func() error, error) {
			veth := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: w.point.IfIndex}}
			err := netlink.LinkSetXdpFdWithFlags(veth, prog.FD(), flags)
			return func() error { return netlink.LinkSetXdpFdWithFlags(veth, -1, flags) }, err
		}
	}
	byLink := func(w *world, prog *ebpf.Program) (func() error, error) {
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: w.point.IfIndex})
		if err != nil {
			return nil, err
		}
		return l.Close, nil
	}
	for name, foreign := range map[string]func(*world, *ebpf.Program) (func() error, error){
		"netlink native":  byNetlink(unix.XDP_FLAGS_DRV_MODE),
		"netlink generic": byNetlink(unix.XDP_FLAGS_SKB_MODE),
		"link":            byLink,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "xdp")
			theirs, packets := w.program(t, "theirs", 2)
			var end func() error
			if err := w.here.Do(func() (err error) { end, err = foreign(w, theirs.Program); return err }); err != nil {
				t.Fatal(err)
			}
			id, err := programID(theirs.Program)
			if err != nil {
				t.Fatal(err)
			}
			prog, _ := w.program(t, "ours", 1)
			for _, mode := range []volume.XDPMode{volume.XDPAuto, volume.XDPNative, volume.XDPGeneric} {
				err := w.attachMode(first, prog, mode)
				var fe *ForeignError
				if !errors.Is(err, ErrForeign) || !errors.As(err, &fe) {
					t.Fatalf("%s: error is %v, want ErrForeign", mode, err)
				}
				if fe.ID != id || fe.Name != "theirs" {
					t.Errorf("%s: names program %d %q, want %d %q", mode, fe.ID, fe.Name, id, "theirs")
				}
				if want := fmt.Sprintf(`xdp veth0: program "theirs" (id %d) that is not bpfvol's runs there; detach it first: ip link set dev veth0 xdp off`, id); !strings.HasPrefix(err.Error(), want) {
					t.Errorf("error is %q, want %q...", err, want)
				}
			}
			w.nothingPinned(t)
			w.mustDetach(t, first.Volume)
			n := count(t, packets)
			w.send(t, 5)
			if now := counted(t, packets, n+5); now < n+5 {
				t.Error("their program has stopped")
			}
			if err := w.here.Do(end); err != nil {
				t.Fatal(err)
			}
			w.mustAttach(t, first, prog)
			w.mustDetach(t, first.Volume)
		})
	}
}

func TestForeignFilterStays(t *testing.T) {
	for _, carrier := range []string{"tcx", "clsact"} {
		t.Run(carrier, func(t *testing.T) {
			w := newWorld(t, carrier)
			theirs, packets := w.program(t, "theirs", -1) // unspec: the next one runs
			f := (&site{Dispatcher: w.Dispatcher, Point: w.point}).filter(theirs.FD())
			f.Name, f.Priority = "theirs", 100
			qdisc := (&site{Dispatcher: w.Dispatcher, Point: w.point}).qdisc()
			if err := w.here.Do(func() error { return errors.Join(netlink.QdiscAdd(qdisc), netlink.FilterAdd(f)) }); err != nil {
				t.Fatal(err)
			}
			ours, ourPackets := w.program(t, "ours", -1)
			w.mustAttach(t, first, ours)
			w.send(t, 5)
			if a, b := counted(t, packets, 5), counted(t, ourPackets, 5); a < 5 || b < 5 {
				t.Errorf("they counted %d, we %d packets of 5", a, b)
			}
			w.mustDetach(t, first.Volume)
			n := count(t, packets)
			w.send(t, 5)
			if now := counted(t, packets, n+5); now < n+5 {
				t.Error("their filter is gone")
			}
			if carrier == "clsact" {
				// One that stands exactly where ours would.
				f.Priority = filterPriority
				if err := w.here.Do(func() error { return netlink.FilterAdd(f) }); err != nil {
					t.Fatal(err)
				}
				if _, err := w.attach(first, ours); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), `"theirs"`) {
					t.Errorf("error is %v, want ErrForeign", err)
				}
				w.nothingPinned(t)
			}
			if err := w.here.Do(func() error { return netlink.QdiscDel(qdisc) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// A filter that somebody adds to the qdisc that we made keeps the qdisc.
func TestForeignFilterKeepsOurQdisc(t *testing.T) {
	w := newWorld(t, "clsact")
	ours, _ := w.program(t, "ours", -1)
	theirs, packets := w.program(t, "theirs", -1)
	w.mustAttach(t, first, ours)
	s := &site{Dispatcher: w.Dispatcher, Point: w.point}
	f := s.filter(theirs.FD())
	f.Name, f.Priority = "theirs", 600
	if err := w.here.Do(func() error { return netlink.FilterAdd(f) }); err != nil {
		t.Fatal(err)
	}
	w.mustDetach(t, first.Volume)
	w.send(t, 5)
	if n := counted(t, packets, 5); n < 5 {
		t.Error("their filter is gone")
	}
	if err := w.here.Do(func() error { return netlink.QdiscDel(s.qdisc()) }); err != nil {
		t.Error(err)
	}
}

// The qdisc is shared by both directions: whichever leaves last removes it.
func TestLastDirectionRemovesQdisc(t *testing.T) {
	w := newWorld(t, "clsact")
	prog, _ := w.program(t, "count", -1)
	w.mustAttach(t, first, prog)
	in := w.point
	w.point = w.resolve(t, carriers["clsact egress"].hook)
	w.mustAttach(t, second, prog)
	w.mustDetach(t, first.Volume)
	w.mustDetach(t, second.Volume)
	w.point = in
}

// ip link is how an administrator looks.
func TestIPToolSeesOurProgram(t *testing.T) {
	if version, err := exec.Command("ip", "-V").CombinedOutput(); err != nil || !strings.Contains(string(version), "iproute2") {
		t.Skipf("no iproute2 here: %v: %s", err, version)
	}
	w := newWorld(t, "xdp")
	prog, _ := w.program(t, "count", 2)
	w.mustAttach(t, first, prog)
	var out []byte
	err := w.here.Do(func() (err error) {
		out, err = exec.Command("ip", "link", "show", "dev", "veth0").CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	id, err := programID(prog.Program)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("prog/xdp id %d ", id); !strings.Contains(string(out), want) {
		t.Errorf("ip link says %s, want %q", out, want)
	}
	w.mustDetach(t, first.Volume)
}
