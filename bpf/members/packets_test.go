// SPDX-License-Identifier: Apache-2.0

package members_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf/members"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestAdjustHeadPutsATagIn(t *testing.T) {
	l := find(t, ebpf.XDP, "adjust_head", xdpPass)
	packet := frame(64)
	_, got := l.run(t, packet)
	want := slices.Concat(packet[:12], []byte{0x81, 0, 0, 5}, packet[12:])
	if !bytes.Equal(got, want) {
		t.Errorf("got\n% x, want\n% x", got, want)
	}
}

func TestAdjustTailCutsFourBytesOff(t *testing.T) {
	for hook, l := range map[string]loaded{
		"xdp": find(t, ebpf.XDP, "adjust_tail", xdpPass),
		"tc":  find(t, ebpf.SchedCLS, "change_tail", tcOK),
	} {
		packet := frame(64)
		if _, got := l.run(t, packet); !bytes.Equal(got, packet[:60]) {
			t.Errorf("%s: got\n% x, want\n% x", hook, got, packet[:60])
		}
	}
}

// xdpMD is struct xdp_md: where data begins and ends, and the metadata before it.
type xdpMD struct{ Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32 }

func TestMetadataGetsFromMemberToMember(t *testing.T) {
	write, read := find(t, ebpf.XDP, "meta_write", xdpPass), find(t, ebpf.XDP, "meta_read", xdpPass)
	packet := frame(64)
	var ctx xdpMD
	opts := &ebpf.RunOptions{Data: packet, DataOut: make([]byte, 128), Context: xdpMD{DataEnd: 64}, ContextOut: &ctx}
	if _, err := write.Programs["meta_write"].Run(opts); err != nil {
		t.Fatal(err)
	}
	if want := (xdpMD{Data: 4, DataEnd: 68}); ctx.Data != want.Data || ctx.DataEnd != want.DataEnd || ctx.DataMeta != 0 {
		t.Fatalf("meta_write left the context %+v, want %+v", ctx, want)
	}
	if want := binary.NativeEndian.AppendUint32(nil, 0xcafe); !bytes.Equal(opts.DataOut, append(want, packet...)) {
		t.Fatalf("meta_write left\n% x", opts.DataOut)
	}

	opts = &ebpf.RunOptions{Data: opts.DataOut, Context: xdpMD{Data: 4, DataEnd: 68}}
	if _, err := read.Programs["meta_read"].Run(opts); err != nil {
		t.Fatal(err)
	}
	if got := read.result(t).Value; got != 0xcafe {
		t.Errorf("meta_read got %#x, want 0xcafe", got)
	}
}

func TestReflectSwapsAddresses(t *testing.T) {
	l := find(t, ebpf.XDP, "reflect", xdpTX)
	packet := frame(64)
	verdict, got := l.run(t, packet)
	want := slices.Concat(packet[6:12], packet[:6], packet[12:])
	if verdict != xdpTX || !bytes.Equal(got, want) {
		t.Errorf("got verdict %d and\n% x, want %d and\n% x", verdict, got, xdpTX, want)
	}
}

func TestRedirectMapAsksTheMap(t *testing.T) {
	l := find(t, ebpf.XDP, "redirect_map", xdpDrop)
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "a", "b")
	index := uint32(ns.Index(t, "a"))
	if err := ns.Do(func() error { return l.Maps["redirect_map_ports"].Put(uint32(0), index) }); err != nil {
		t.Fatal(err)
	}
	if got, _ := l.run(t, frame(64)); got != xdpRedirect {
		t.Errorf("got verdict %d, want %d", got, xdpRedirect)
	}
}

// A packet that an interface with a large MTU receives may have several parts, which only frags takes.
func TestOnlyFragsAttachesToLargeMTU(t *testing.T) {
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "a", "b")
	attach := func(l loaded) error {
		return ns.Do(func() error {
			a, err := netlink.LinkByName("a")
			if err != nil {
				return err
			}
			b, err := netlink.LinkByName("b")
			if err != nil {
				return err
			}
			if err := errors.Join(netlink.LinkSetMTU(a, 9000), netlink.LinkSetMTU(b, 9000)); err != nil {
				return err
			}
			x, err := link.AttachXDP(link.XDPOptions{
				Program: l.Programs[l.Program], Interface: a.Attrs().Index, Flags: link.XDPDriverMode,
			})
			if err != nil {
				return err
			}
			return x.Close()
		})
	}
	if err := attach(find(t, ebpf.XDP, "frags", xdpPass)); err != nil {
		t.Error("frags:", err)
	}
	if err := attach(find(t, ebpf.XDP, "counter", xdpPass)); !errors.Is(err, unix.ERANGE) {
		t.Errorf("counter: got %v, want %v", err, unix.ERANGE)
	}
}

func TestPacketWriteWrites(t *testing.T) {
	l := find(t, ebpf.SchedCLS, "packet_write", tcOK)
	packet := frame(64)
	_, got := l.run(t, packet)
	want := slices.Concat(bytes.Repeat([]byte{0xff}, 6), packet[6:])
	if !bytes.Equal(got, want) {
		t.Errorf("got\n% x, want\n% x", got, want)
	}
}

// skb is struct __sk_buff.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto, Priority uint32
	IngressIfindex, Ifindex, TCIndex                                                      uint32
	CB                                                                                    [5]uint32
	Rest                                                                                  [124]byte
}

func TestCtxWriteMarks(t *testing.T) {
	l := find(t, ebpf.SchedCLS, "ctx_write", tcOK)
	var got skb
	opts := &ebpf.RunOptions{Data: frame(64), Context: skb{Mark: 3}, ContextOut: &got}
	if _, err := l.Programs["ctx_write"].Run(opts); err != nil {
		t.Fatal(err)
	}
	if got.Mark != 7 || got.CB[0] != 7 {
		t.Errorf("got mark %d and cb %d, want 7", got.Mark, got.CB[0])
	}
	if value := l.result(t).Value; value != 3 {
		t.Errorf("it saw mark %d, want 3", value)
	}
}

// LD_ABS ends the program, whatever it would have returned.
func TestLegacyLoadEndsShortPackets(t *testing.T) {
	l := find(t, ebpf.SchedCLS, "legacy_load", tcShot)
	if got, _ := l.run(t, frame(64)); got != 0 {
		t.Errorf("short packet: got verdict %d, want 0", got)
	}
	if got := l.result(t); got != (members.Result{Packets: 1}) {
		t.Errorf("short packet: got %+v", got)
	}
	if got, _ := l.run(t, frame(128)); got != tcShot {
		t.Errorf("long packet: got verdict %d, want %d", got, tcShot)
	}
	if got, want := l.result(t), (members.Result{Packets: 2, Value: 0x0800<<8 | 100}); got != want {
		t.Errorf("long packet: got %+v, want %+v", got, want)
	}
}

// In a function, LD_ABS ends the function.
func TestLegacyLoadEndsFunctionForShortPackets(t *testing.T) {
	l := find(t, ebpf.SchedCLS, "legacy_load_function", tcShot)
	if got, _ := l.run(t, frame(64)); got != tcShot {
		t.Errorf("short packet: got verdict %d, want %d", got, tcShot)
	}
	if got, want := l.result(t), (members.Result{Packets: 1, Value: 1}); got != want {
		t.Errorf("short packet: got %+v, want %+v", got, want)
	}
	l.run(t, frame(128))
	if got, want := l.result(t), (members.Result{Packets: 2, Value: 101}); got != want {
		t.Errorf("long packet: got %+v, want %+v", got, want)
	}
}
