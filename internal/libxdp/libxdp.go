// SPDX-License-Identifier: Apache-2.0

// Package libxdp runs several XDP programs on an interface by the protocol of xdp-tools' libxdp, so that xdp-loader and
// whatever else uses libxdp lists and keeps our programs, and we keep theirs. The protocol is
// https://github.com/xdp-project/xdp-tools/blob/main/lib/libxdp/protocol.org; what that leaves open is done as
// lib/libxdp/libxdp.c does it. The kernel must let programs replace functions of others (freplace): see Supported.
//
//	prog, err := libxdp.Load(spec, nil)      // a component for any interface
//	prog.Pin(...)                            // so that it is known what may run
//	err = p.Add(ctx, ifindex, prog, libxdp.Options{Run: libxdp.Run{Priority: 50, ProceedOn: 1 << 2}})
//	...
//	err = p.Remove(ctx, ifindex, id)
//
// # Layout
//
// A dispatcher is the interface's XDP program: it calls one function after another, and goes on where the verdict is
// one that the component's "chain call actions" have. Each function is replaced by a component. What runs is in the
// kernel and in pins alone:
//
//	the dispatcher's one map        priority, chain call actions and flags of each component (config.go)
//	<dir>/                          its flock is the lock of the protocol: pins are read and written under it
//	<dir>/dispatch-IFINDEX-ID/      of the dispatcher with program id ID
//	    prog0-link, prog0-prog      what keeps the first component attached, and it
//	    ...
//	<dir>/bpfvol/                   not of the protocol; its flock lets one process of ours make changes (lock.go)
//	    NETNS-IFINDEX               a change of ours that has not ended (intent.go)
//
// A dispatcher is not changed but replaced. Ours has exactly the slots it needs, with the chain call actions compiled
// in. A component that is alone replaces the dispatcher's entry, and its verdict is final (see target).
//
// The network namespace is the calling thread's. An interface index means nothing to the pins outside its namespace,
// and xdp-loader clean believes it does: namespaces other than the host's need directories of their own.
//
// # Order of effects
//
// The interface's dispatcher is read; the next one is loaded, and all components are attached to it. Then
//
//  1. the intent is pinned: the ids of the old dispatcher and of the next;
//  2. the next one's directory and pins are made;
//  3. the interface is given the next dispatcher if it still has the old one, by one netlink message;
//  4. the next one's pins are made again, should somebody have cleaned up between 2 and 3;
//  5. the old one's pins and directory are removed;
//  6. the intent is unpinned.
//
// Until 3 the interface has the old dispatcher with all of its pins, from then on the next with all of its: a process
// may die anywhere, and no component is lost, nor does libxdp see anything that it does not know. What is too much is
// removed by the next change of ours: the intent proves that it is attached nowhere. If the old dispatcher is gone at
// 3, somebody who uses libxdp was faster: 2 and 1 are undone, and the change starts over from reading.
//
// The lock of the protocol is held while reading, in 2, and in 4 with 5, but not in 3. libxdp needs it so (see locked).
//
// Removing the last component is the same without a next dispatcher. After every removal, what else holds the program's
// pins for this interface goes, whoever left it: the slot of a program that ends lets packets pass on.
//
// # Versions
//
// Versions 2 (xdp-tools 1.3 to 1.5) and 3 (from 1.6) of the protocol are known; a dispatcher gets the version of the
// one it replaces. Others, and those that are bound to their device, are left alone. libxdp is as careful: xdp-tools
// before 1.6 do not touch a dispatcher of version 3, and later ones list one of version 2 but do not change it. So
// Protocol.Version is for admins who know which they have.
//
// Kernels that look at what a slot says of itself (6.13, and stable ones such as 6.12.95; see generate) keep xdp-tools
// before 1.5.5 from changing a set with a component that changes packets, whoever made the set. They say so and leave
// it as it is (TestPacketChangersMix). We change such sets.
//
// The tests run with Debian 12's xdp-tools 1.3.1. All that do not expect its shortcomings have passed with 1.5.8, and,
// for dispatchers of version 3, with 1.6.3.
//
// # Invariants
//
//   - xdp-loader lists our programs in order with their settings, adds its own and removes them, and ours keep running
//     (TestLoaderJoinsOurDispatcher); we do the same to its (TestWeJoinLoadersDispatcher);
//   - components run by priority, ties as in libxdp; a verdict that is no chain call action ends the run
//     (TestComponentsRunByPriority, TestDropStopsLaterComponents);
//   - what others set for their components stays (TestForeignSettingsStay);
//   - every packet meets the old set or the new one, also while xdp-loader makes changes (TestSwapsLetNoPacketThrough,
//     TestLoaderAndWeChangeAtOnce); a change that another comes before starts over (TestLostRaceStartsOver);
//   - what is attached is pinned, whoever cleans up when (TestLoaderCleansUpInBetween);
//   - after a kill at any step every component runs, xdp-loader and we can go on, and Remove leaves nothing
//     (TestKilledAddIsFinishedByTheNext, TestKilledRemoveIsFinishedByTheNext, TestLoaderGoesOnAfterKill);
//   - pins of a dispatcher that may be attached are not removed (TestIntentOfAnotherNamespaceStays,
//     TestMovedInterfaceKeepsItsComponents);
//   - a component may be any XDP program, with BTF or without, and may change packets (TestLoadTakesEveryXDPProgram,
//     TestComponentsChangePackets);
//   - the dispatcher has frags only if each component has (TestFragsNeedEveryComponent);
//   - the eleventh component is refused (TestEleventhComponentIsRefused);
//   - a program that is no dispatcher, and one of an unknown version, stays (TestForeignProgramStays,
//     TestUnknownVersionIsRefused); a dispatcher keeps its version (TestNewerVersionIsKept);
//   - xdpdump sees what dispatcher and components do with a packet (TestDumpSeesDispatcherAndComponents);
//   - after Remove no pin holds the program, also where interface or dispatcher are gone (TestRemoveAfterInterfaceIsGone);
//   - what the dispatcher's map says is believed only as far as it can be (FuzzConfig).
package libxdp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// DefaultDir is where libxdp keeps its pins, unless LIBXDP_BPFFS names another bpffs.
const DefaultDir = "/sys/fs/bpf/xdp"

// Protocol changes the dispatchers whose components are pinned below one directory. The zero value is for those of the
// host.
type Protocol struct {
	// Dir is in a bpffs and is made when it is needed; "" is DefaultDir.
	Dir string
	// Version is that of dispatchers on interfaces that have none: 2 or 3; 0 is 2.
	Version uint8

	// step, if not nil, is told of every effect right after it. Tests die in it.
	step func(name string)
}

// Run is how a component runs.
type Run struct {
	Priority  uint32 // lower runs first; libxdp's default is 50
	ProceedOn uint32 // bit n: the next component runs after verdict n; without one, the packet passes
	// Frags says that the program was made for packets in several pieces (BPF_F_XDP_HAS_FRAGS).
	Frags bool
}

// Component is one program of a dispatcher.
type Component struct {
	ID   ebpf.ProgramID
	Name string // of its function, as anyone wrote it
	Run
}

// Dispatcher is what runs on an interface.
type Dispatcher struct {
	ID         ebpf.ProgramID
	Mode       volume.XDPMode // native or generic
	Version    uint8          // of libxdp's protocol
	Components []Component    // in the order in which they run
}

// Options say how Add adds a component.
type Options struct {
	Run
	// Mode is for a dispatcher that has yet to be attached: auto, or "", is native where the driver can, else generic.
	// One that is attached keeps its mode, and is refused if it is not the one asked for.
	Mode volume.XDPMode
	// Replaces is a component that goes in the same step; 0, or one that is not there, is none.
	Replaces ebpf.ProgramID
}

// Read returns the dispatcher on an interface, nil if there is no XDP program. A program that is none, or one whose
// components cannot be told, is a *ForeignError.
func (p Protocol) Read(ctx context.Context, ifindex int) (*Dispatcher, error) {
	for range maxTries {
		var d *opened
		err := p.locked(ctx, func() (err error) {
			d, err = p.open(ifindex)
			return err
		})
		if errors.Is(err, os.ErrNotExist) { // the directory; so there is nothing to lock
			d, err = p.open(ifindex)
		}
		if errors.Is(err, errRaced) {
			continue
		} else if d == nil || err != nil {
			return nil, err
		}
		defer d.close()
		read := &Dispatcher{ID: d.id, Mode: d.mode, Version: d.version}
		for _, s := range d.slots {
			read.Components = append(read.Components, s.Component)
		}
		return read, nil
	}
	return nil, fmt.Errorf("libxdp's dispatcher: %w each time it was read; try again", errRaced)
}

// Add makes a program that Load loaded a component of an interface's dispatcher, or gives it other settings if it is
// one. prog stays the caller's.
//
// Errors: *ForeignError where a program runs that is no dispatcher, ErrFull, ErrMode, ErrNoInterface,
// ebpf.ErrNotSupported if kernel or driver cannot.
func (p Protocol) Add(ctx context.Context, ifindex int, prog *ebpf.Program, o Options) error {
	if p.Version != 0 && p.Version != version2 && p.Version != version3 {
		return fmt.Errorf("libxdp's protocol: version %d is not known; there are 2 and 3", p.Version)
	}
	mine, err := prog.Clone()
	if err != nil {
		return err
	}
	defer mine.Close()
	s, err := newSlot(mine)
	if err != nil {
		return err
	}
	s.Run = o.Run
	if o.Frags {
		s.flags = hasFrags
	}
	if err := p.makeDir(); err != nil {
		return err
	}
	own, err := p.begin(ctx, ifindex)
	if err != nil {
		return err
	}
	defer own.Close()
	return p.change(ctx, ifindex, o.Mode, func(running []*slot) ([]*slot, bool, error) {
		wanted, same := []*slot{s}, false
		for _, r := range running {
			switch r.ID {
			case s.ID:
				same = r.Run == s.Run
			case o.Replaces:
			default:
				wanted = append(wanted, r)
			}
		}
		if len(wanted) > maxSlots {
			return nil, false, fmt.Errorf("%w (%d of %d used); unload one", ErrFull, len(running), maxSlots)
		}
		return wanted, !same || len(wanted) != len(running), nil
	})
}

// Remove takes a program out of an interface's dispatcher, and takes the dispatcher off when it was the last. What is
// not there, be it program, dispatcher or interface, is as good as removed. A packet that arrives after Remove returned
// nil does not meet the program; if the interface has moved to another namespace, one that arrives soon after.
func (p Protocol) Remove(ctx context.Context, ifindex int, id ebpf.ProgramID) error {
	if _, err := os.Stat(p.dir()); errors.Is(err, os.ErrNotExist) {
		return nil // there has never been one
	}
	own, err := p.begin(ctx, ifindex)
	if err != nil {
		return err
	}
	defer own.Close()
	var wait time.Duration
	err = p.change(ctx, ifindex, "", func(running []*slot) (wanted []*slot, changed bool, err error) {
		for _, r := range running {
			if r.ID != id {
				wanted = append(wanted, r)
			} else {
				wait = grace
			}
		}
		return wanted, len(wanted) != len(running), nil
	})
	if err != nil && !errors.Is(err, ErrNoInterface) && !errors.Is(err, ErrForeign) {
		return err
	}
	return p.unpinAll(ctx, ifindex, id, wait)
}

// Forget is Remove for an interface whose network namespace is gone: it removes what still holds the program.
func (p Protocol) Forget(ctx context.Context, ifindex int, id ebpf.ProgramID) error {
	if _, err := os.Stat(p.dir()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return p.unpinAll(ctx, ifindex, id, 0)
}

// grace is how long other pins of a program may stay after a swap without it: they may be those of a change by libxdp
// that is about to fail, because ours came first, and to remove them itself.
const (
	grace     = 500 * time.Millisecond
	gracePoll = 2 * time.Millisecond
)

// unpinAll ends what is left of a program in any dispatcher that is, or was, on an interface.
func (p Protocol) unpinAll(ctx context.Context, ifindex int, id ebpf.ProgramID, wait time.Duration) error {
	for end := time.Now().Add(wait); ; time.Sleep(gracePoll) {
		left := false
		err := p.locked(ctx, func() error {
			dirs, err := p.dispatchDirs(ifindex)
			if err != nil {
				return err
			}
			left = slices.ContainsFunc(dirs, func(dir string) bool { return len(slotsWith(dir, id)) > 0 })
			if left = left && time.Now().Before(end); left {
				return nil
			}
			for _, dir := range dirs {
				if err := unpin(dir, id, p.reached); err != nil {
					return err
				}
			}
			return nil
		})
		if !left || err != nil {
			return err
		}
	}
}

func (p Protocol) dir() string {
	if p.Dir == "" {
		return DefaultDir
	}
	return p.Dir
}

// reached tells a test which effect just happened.
func (p Protocol) reached(step string) {
	if p.step != nil {
		p.step(step)
	}
}
