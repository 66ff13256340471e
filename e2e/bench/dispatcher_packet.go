// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/dispatcher"
)

const (
	packetRuns   = 1_000_000
	packetRounds = 5
	packetLoads  = 8
)

// benchPacket runs programs on one frame by BPF_PROG_TEST_RUN, in turn, and prints what one packet takes, the kernel's
// own share of such a run included. What a member takes is a slope, from one member to many: that share, and what the
// first member costs, are not in it. What it takes alone is its run without that of pass, a small difference of two large
// numbers; where in memory the kernel puts a program makes half a nanosecond, so both are loaded a few times.
//
//   - pass is two instructions, so its slope is what the dispatcher itself adds;
//   - counter adds to a map of its own. The verifier knows the verdict of both and removes the check of proceedOn;
//   - firewall reads the packet, so its verdict must be looked at. Its two maps bound how many fit into one program.
func benchPacket(context.Context) error {
	w := newWorkshop()
	defer w.close()
	var runs []*packetRun
	add := func(prog *ebpf.Program, err error) *packetRun {
		r := &packetRun{progs: []*ebpf.Program{prog}, err: err}
		runs = append(runs, r)
		return r
	}
	addAlone := func(programs []dispatcher.Program) *packetRun {
		r := &packetRun{}
		for _, p := range programs[:packetLoads] {
			r.progs = append(r.progs, p.Program)
		}
		runs = append(runs, r)
		return r
	}
	pass, err := w.programs(bpf.Pass(), "pass", 255)
	if err != nil {
		return err
	}
	counter, err := w.programs(bpf.Counter(), "counter", 50)
	if err != nil {
		return err
	}
	firewall, err := w.programs(bpf.Firewall(), "firewall", 30)
	if err != nil {
		return err
	}
	alone, counterAlone, firewallAlone := addAlone(pass), addAlone(counter), addAlone(firewall)
	fused1, fused10 := add(w.fused(pass[:1])), add(w.fused(pass[:10]))
	fused50, fused255 := add(w.fused(pass[:50])), add(w.fused(pass))
	counted1, counted50 := add(w.counted(pass[:1])), add(w.counted(pass[:50]))
	counter1, counter50 := add(w.fused(counter[:1])), add(w.fused(counter))
	firewall1, firewall30 := add(w.fused(firewall[:1])), add(w.fused(firewall))
	slots1, slots10 := add(w.slotted(pass[:1])), add(w.slotted(pass[:10]))
	var libxdp []*packetRun
	if theirs, err := w.libxdp(1, 10); err != nil {
		fmt.Fprintf(os.Stderr, "bench: dispatcher.libxdp_member_ns is left out: %v\n", err)
	} else {
		libxdp = append(libxdp, add(theirs[0], nil), add(theirs[1], nil))
	}

	frame := udpFrame(make(net.HardwareAddr, 6), make(net.HardwareAddr, 6))
	for range packetRounds {
		for _, r := range runs {
			if err := r.run(frame); err != nil {
				return err
			}
		}
	}
	figure("dispatcher.alone_ns", alone.ns(), "ns")
	figure("dispatcher.fused10_ns", fused10.ns(), "ns")
	figure("dispatcher.fused10_over_alone", fused10.ns()/alone.ns(), "ratio")
	figure("dispatcher.fused255_ns", fused255.ns(), "ns")
	figure("dispatcher.fused_member_ns", slope(fused1, fused50, 49), "ns")
	figure("dispatcher.stats_member_ns", slope(counted1, counted50, 49)-slope(fused1, fused50, 49), "ns")
	figure("dispatcher.counter_member_alone_ns", counterAlone.ns()-alone.ns(), "ns")
	figure("dispatcher.fused_counter_member_ns", slope(counter1, counter50, 49), "ns")
	figure("dispatcher.firewall_member_alone_ns", firewallAlone.ns()-alone.ns(), "ns")
	figure("dispatcher.fused_firewall_member_ns", slope(firewall1, firewall30, 29), "ns")
	figure("dispatcher.slot_member_ns", slope(slots1, slots10, 9), "ns")
	if libxdp != nil {
		figure("dispatcher.libxdp_member_ns", slope(libxdp[0], libxdp[1], 9), "ns")
	}
	return nil
}

// packetRun is a program, loaded once or more often, that is run again and again.
type packetRun struct {
	progs []*ebpf.Program
	err   error // from when it was made
	took  []time.Duration
}

// run runs the program on a frame. It measures the thread's processor time, not the time that BPF_PROG_TEST_RUN returns:
// both leave out what others on the machine take, but the latter is in whole nanoseconds a run.
func (r *packetRun) run(frame []byte) error {
	if r.err != nil {
		return r.err
	}
	for _, prog := range r.progs {
		var verdict uint32
		_, took, err := clocks(func() (err error) {
			verdict, _, err = prog.Benchmark(frame, packetRuns, nil)
			return err
		})
		if err != nil {
			return err
		}
		if int(verdict) != xdpPass {
			return fmt.Errorf("%v returned %d, want %d", prog, verdict, xdpPass)
		}
		r.took = append(r.took, took)
	}
	return nil
}

// ns is what one packet takes.
func (r *packetRun) ns() float64 {
	slices.Sort(r.took)
	return float64(r.took[len(r.took)/2]) / packetRuns
}

// slope is what each of the members takes that one program has more than the other.
func slope(few, many *packetRun, more int) float64 { return (many.ns() - few.ns()) / float64(more) }
