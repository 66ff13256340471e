// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/dispatcher/fuse"
	"github.com/bpfvol/bpfvol/internal/volume"
)

const swapRounds = 21

// benchSwap attaches one more member to a point of N, in turn with two things that no dispatcher saves, done to the same
// program: loading it, and the update of a bare link to it when it is loaded. The update waits for packets in flight: a
// grace period of RCU, two or more where one is under way. That is most of an attachment, and different each time.
//
//	swap           Attach, by the clock
//	swap_floor     the update of the bare link, by the clock
//	swap_loading   loading the program: verification, nearly all of it
//	swap_own       what is left of Attach without loading and update
//	build          swap_own and swap_loading of 10 members: pins read and written, members fused, the program loaded
//
// The last three wait for nothing, so they are in processor time. Whether a change is flat apart from verification is
// then swap_floor and swap_own of 50 members over the same of one. Attach by the clock would say it as well, but mostly
// says how many grace periods it met.
func benchSwap(ctx context.Context) (err error) {
	w := newWorkshop()
	defer w.close()
	dir, err := os.MkdirTemp("", "bpfvol-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount a bpffs: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	points := dispatcher.New(filepath.Join(dir, "points"), dispatcher.Options{Types: w.types})

	var swaps []*swapping
	for _, members := range []int{1, 10, 50} {
		s, err := newSwapping(ctx, w, points, members)
		if err != nil {
			return err
		}
		defer s.close()
		swaps = append(swaps, s)
	}
	for range swapRounds {
		for _, s := range swaps {
			if err := s.round(ctx); err != nil {
				return fmt.Errorf("%d members: %w", s.members, err)
			}
		}
	}
	var floor []time.Duration
	for _, s := range swaps {
		floor = append(floor, s.floor...)
		figure(fmt.Sprintf("dispatcher.swap_ms.%d", s.members), median(s.swap), "ms")
		figure(fmt.Sprintf("dispatcher.swap_floor_ms.%d", s.members), median(s.floor), "ms")
		figure(fmt.Sprintf("dispatcher.swap_loading_ms.%d", s.members), median(s.loading), "ms")
		figure(fmt.Sprintf("dispatcher.swap_own_ms.%d", s.members), median(s.own), "ms")
	}
	one, ten, fifty := swaps[0], swaps[1], swaps[2]
	figure("dispatcher.swap_over_floor_50_vs_1", (median(floor)+median(fifty.own))/(median(floor)+median(one.own)), "ratio")
	figure("dispatcher.build_us", 1000*(median(ten.own)+median(ten.loading)), "us")
	return nil
}

// swapping is a point with some members, one that comes and goes, and a bare link to a program of as many.
type swapping struct {
	*dispatcher.Dispatcher
	members int
	point   dispatcher.Point
	more    dispatcher.Program // the one that comes and goes
	set     fuse.Set           // of all, with it
	bare    link.Link

	swap, floor, loading, own []time.Duration
}

func newSwapping(ctx context.Context, w *workshop, d *dispatcher.Dispatcher, members int) (*swapping, error) {
	s := &swapping{Dispatcher: d, members: members}
	programs, err := w.programs(bpf.Counter(), "counter", members+1)
	if err != nil {
		return nil, err
	}
	s.more = programs[members]
	if s.set, err = w.set(programs); err != nil {
		return nil, err
	}
	ours, _, err := veth(fmt.Sprintf("ours%d", members))
	if err != nil {
		return nil, err
	}
	found, err := dispatcher.Resolve(&volume.XDP{Interfaces: []string{ours.Attrs().Name}})
	if err != nil {
		return nil, err
	}
	s.point = found[0]
	for i, p := range programs[:members] {
		if err := s.attach(ctx, fmt.Sprintf("member%d", i), p); err != nil {
			return nil, err
		}
	}
	bare, _, err := veth(fmt.Sprintf("bare%d", members))
	if err != nil {
		return nil, err
	}
	prog, err := w.load(s.set)
	if err != nil {
		return nil, err
	}
	s.bare, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: bare.Attrs().Index, Flags: link.XDPDriverMode})
	return s, err
}

func (s *swapping) close() { s.bare.Close() }

func (s *swapping) attach(ctx context.Context, id string, p dispatcher.Program) error {
	m := dispatcher.Member{Volume: id, Program: "counter", Priority: 500, ProceedOn: []volume.Verdict{"pass"}}
	_, err := s.Attach(ctx, s.point, volume.XDPNative, m, p)
	return err
}

// round lets the one come and go, and does the same to the bare link.
func (s *swapping) round(ctx context.Context) error {
	const id = "more"
	arrive()
	swap, all, err := clocks(func() error { return s.attach(ctx, id, s.more) })
	if err != nil {
		return err
	}
	if err := s.Detach(ctx, id); err != nil {
		return err
	}
	spec, err := s.set.Program()
	if err != nil {
		return err
	}
	arrive()
	var prog *ebpf.Program
	_, loading, err := clocks(func() (err error) {
		prog, err = ebpf.NewProgramWithOptions(spec, ebpf.ProgramOptions{LogDisabled: true})
		return err
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	floor, update, err := clocks(func() error { return s.bare.Update(prog) })
	if err != nil {
		return err
	}
	s.swap, s.floor, s.loading, s.own = append(s.swap, swap), append(s.floor, floor), append(s.loading, loading), append(s.own, all-loading-update)
	return nil
}

// arrive returns at any moment between two ticks of the kernel's clock. A sleep ends at a tick and so does a grace
// period, which would be always the shortest.
func arrive() {
	settle()
	for end := time.Now().Add(rand.N(10 * time.Millisecond)); time.Now().Before(end); {
	}
}
