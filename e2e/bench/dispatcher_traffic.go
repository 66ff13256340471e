// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/bpf"
)

const (
	trafficRounds = 9
	trafficTime   = 300 * time.Millisecond
)

// benchTraffic sends UDP datagrams over a veth to a socket, and prints how many of them a second of processor time takes
// from there to here: the receiving side runs in the sender's thread, too, as long as the machine has time for it. Of
// that second others take nothing, however busy the machine.
//
// Without a program veth hands packets on as they are; for the first it copies each to where XDP can change it. So
// fused10 is to be compared with fused1, which has paid for that, and both with fused0.
func benchTraffic(context.Context) error {
	w := newWorkshop()
	defer w.close()
	counter, err := w.programs(bpf.Counter(), "counter", 10)
	if err != nil {
		return err
	}
	fused10, err := w.fused(counter)
	if err != nil {
		return err
	}
	slots10, err := w.slotted(counter)
	if err != nil {
		return err
	}
	wire, err := newWire()
	if err != nil {
		return err
	}
	defer wire.close()

	contenders := []struct {
		name    string
		prog    *ebpf.Program // nil: none
		packets []float64     // per second of processor time
	}{{name: "fused0"}, {name: "fused1", prog: counter[0].Program}, {name: "fused10", prog: fused10}, {name: "slots10", prog: slots10}}
	for range trafficRounds {
		for i := range contenders {
			c := &contenders[i]
			packets, err := wire.blast(c.prog)
			if err != nil {
				return fmt.Errorf("traffic of %s: %w", c.name, err)
			}
			c.packets = append(c.packets, packets)
		}
	}
	pps := map[string]float64{}
	for _, c := range contenders {
		slices.Sort(c.packets)
		pps[c.name] = c.packets[len(c.packets)/2]
		figure("dispatcher.traffic_pps."+c.name, pps[c.name], "packets/s")
	}
	figure("dispatcher.traffic_fused10_over_fused0", pps["fused10"]/pps["fused0"], "ratio")
	figure("dispatcher.traffic_fused10_over_fused1", pps["fused10"]/pps["fused1"], "ratio")
	figure("dispatcher.traffic_slots10_over_fused1", pps["slots10"]/pps["fused1"], "ratio")
	return nil
}

// wire is a veth in the current network namespace. Datagrams go from its far end to a socket that nobody reads.
type wire struct {
	here   netlink.Link
	sender *sender
	sink   net.PacketConn
}

func newWire() (_ *wire, err error) {
	here, peer, err := veth("wire")
	if err != nil {
		return nil, err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: udpTo.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(here, address); err != nil {
		return nil, err
	}
	w := &wire{here: here}
	if w.sink, err = net.ListenPacket("udp4", fmt.Sprintf("%s:%d", udpTo, udpPort)); err != nil {
		return nil, err
	}
	w.sender, err = newSender(peer.Attrs().Index, udpFrame(peer.Attrs().HardwareAddr, here.Attrs().HardwareAddr))
	if err != nil {
		return nil, errors.Join(err, w.sink.Close())
	}
	return w, nil
}

func (w *wire) close() {
	w.sender.close()
	w.sink.Close()
}

// blast sends as fast as it can, for a while, with a program attached, and returns how many packets arrived per second
// of processor time.
func (w *wire) blast(prog *ebpf.Program) (packets float64, err error) {
	if prog != nil {
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: w.here.Attrs().Index, Flags: link.XDPDriverMode})
		if err != nil {
			return 0, err
		}
		defer l.Close()
	}
	settle()
	before, err := w.received()
	if err != nil {
		return 0, err
	}
	_, took, err := clocks(func() error {
		for end := time.Now().Add(trafficTime); time.Now().Before(end); {
			if err := w.sender.send(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	after, err := w.received()
	if err != nil {
		return 0, err
	}
	return float64(after-before) / took.Seconds(), nil
}

func (w *wire) received() (uint64, error) {
	l, err := netlink.LinkByIndex(w.here.Attrs().Index)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Statistics.RxPackets, nil
}
