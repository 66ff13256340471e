// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Packets flow while components come and go on both sides. A counter in front and a dropper at the end stay: each
// packet must meet both, whatever is between, and none gets by.
func TestSwapsLetNoPacketThrough(t *testing.T) {
	for mode, flag := range map[volume.XDPMode]string{volume.XDPNative: "native", volume.XDPGeneric: "skb"} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t)
			front, dropper := w.program(t, "front", pass), w.program(t, "dropper", drop)
			w.mustAdd(t, dropper, Options{Run: Run{Priority: 99, ProceedOn: onPass}, Mode: mode})
			w.mustAdd(t, front, Options{Run: Run{Priority: 1, ProceedOn: onPass}})
			leaked := w.listen(t)

			var stop atomic.Bool
			var flood sync.WaitGroup
			flood.Go(func() {
				for !stop.Load() {
					w.send(t, 50)
				}
			})
			// Met by one and not yet by the other is one packet at most, per processor.
			before := front.now(t)
			middle := w.program(t, "middle", pass)
			for i := range 20 {
				w.mustAdd(t, middle, Options{Run: Run{Priority: 50, ProceedOn: onPass}})
				if i%5 == 0 {
					theirs := w.their(t, "their_pass", "-m", flag, "-P", "60")
					w.unload(t, theirs)
				}
				w.mustRemove(t, middle.id)
			}
			stop.Store(true)
			flood.Wait()

			met := front.now(t)
			if met-before < 1000 {
				t.Errorf("only %d packets came", met-before)
			}
			if n := dropper.met(t, met); n != front.now(t) {
				t.Errorf("of %d packets %d met the dropper", front.now(t), n)
			}
			if n := leaked(); n != 0 {
				t.Errorf("%d packets of %d got by", n, met)
			}
			w.mustRemove(t, front.id, dropper.id)
		})
	}
}

// listen returns how many datagrams of send have reached a socket since.
func (w *world) listen(t *testing.T) (count func() int) {
	t.Helper()
	var c *net.UDPConn
	err := w.here.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.here.Addr, 9)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func() (n int) {
		t.Helper()
		for {
			if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 100)); errors.Is(err, os.ErrDeadlineExceeded) {
				return n
			} else if err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
}

// xdp-loader and we change the same interface at once. It may give up ("not using a dispatcher", when the one that it
// looked at went away before it got the lock); we do not, and what stays runs all the time.
func TestLoaderAndWeChangeAtOnce(t *testing.T) {
	w := newWorld(t)
	front, dropper, middle := w.program(t, "front", pass), w.program(t, "dropper", drop), w.program(t, "middle", pass)
	w.mustAdd(t, dropper, Options{Run: Run{Priority: 99, ProceedOn: onPass}})
	w.mustAdd(t, front, Options{Run: Run{Priority: 1, ProceedOn: onPass}})
	leaked := w.listen(t)
	object := theirFile(t)
	var stop atomic.Bool
	var others sync.WaitGroup
	others.Go(func() {
		for !stop.Load() {
			w.send(t, 50)
		}
	})
	changes, failures := 0, 0
	others.Go(func() {
		for !stop.Load() {
			changes++
			if out, err := w.loader(t, "load", "-n", "their_pass", "veth0", object); err != nil {
				failures++
				t.Logf("xdp-loader load: %v: %s", err, out)
				continue
			}
			d, err := w.read(t)
			if err != nil {
				t.Error(err)
				continue
			}
			for _, c := range d.Components {
				if c.Name != "their_pass" {
					continue
				}
				if out, err := w.loader(t, "unload", "veth0", "-i", strconv.Itoa(int(c.ID))); err != nil {
					failures++
					t.Logf("xdp-loader unload: %v: %s", err, out)
				}
			}
		}
	})
	for range 20 {
		if err := w.add(t, middle, Options{Run: Run{Priority: 50, ProceedOn: onPass}}); err != nil {
			t.Error(err)
		}
		if err := w.here.Do(func() error { return w.Remove(t.Context(), w.ifindex, middle.id) }); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	others.Wait()
	t.Logf("xdp-loader failed in %d of %d changes", failures, changes)
	if failures > changes/2 {
		t.Error("that is too often")
	}
	met := front.now(t)
	if n := dropper.met(t, met); n != front.now(t) {
		t.Errorf("of %d packets %d met the dropper", front.now(t), n)
	}
	if n := leaked(); n != 0 {
		t.Errorf("%d packets of %d got by", n, met)
	}
	for _, c := range w.mustRead(t).Components {
		w.mustRemove(t, c.ID)
	}
}

// xdp-loader clean takes the pins of a dispatcher that is about to be attached for remains.
func TestLoaderCleansUpInBetween(t *testing.T) {
	w := newWorld(t)
	first, second := w.program(t, "first", pass), w.program(t, "second", pass)
	w.mustAdd(t, first, Options{Run: Run{ProceedOn: onPass}})
	disturbed := *w
	disturbed.step = func(name string) {
		if name == "pinned all" {
			w.mustLoader(t, "clean", "veth0")
		}
	}
	disturbed.mustAdd(t, second, Options{Run: Run{ProceedOn: onPass}})
	want := []string{
		fmt.Sprintf("0 first %d XDP_PASS", first.id),
		fmt.Sprintf("0 second %d XDP_PASS", second.id),
	}
	w.wantStatus(t, want...)
	w.mustLoader(t, "clean", "veth0")
	w.wantStatus(t, want...)
	w.meets(t, "the first", first)
	w.meets(t, "the second", second)
	w.mustRemove(t, first.id, second.id)
}

// Changes of several callers do not undo each other.
func TestConcurrentAddsAllRun(t *testing.T) {
	w := newWorld(t)
	all := make([]program, 6)
	for i := range all {
		all[i] = w.program(t, "count", pass) // equal in all but the id
	}
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() {
			for range 3 {
				if err := w.add(t, p, Options{Run: Run{ProceedOn: onPass}}); err != nil {
					t.Error(err)
				}
				if err := w.here.Do(func() error { return w.Remove(t.Context(), w.ifindex, p.id) }); err != nil {
					t.Error(err)
				}
				if err := w.add(t, p, Options{Run: Run{ProceedOn: onPass}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, p := range all {
		w.meets(t, "one of many", p)
	}
	for _, p := range all {
		w.mustRemove(t, p.id)
	}
}

// xdp-loader swaps outside the lock. A change of ours that it comes before starts over.
func TestLostRaceStartsOver(t *testing.T) {
	w := newWorld(t)
	ours, other := w.program(t, "ours", pass), w.program(t, "other", pass)
	w.mustAdd(t, other, Options{Run: Run{ProceedOn: onPass}})

	raced := w.Protocol
	n := 0
	raced.step = func(name string) {
		if name == "pinned intent" && n < 3 { // of an attempt; the old dispatcher is read
			n++
			err := w.swapBehindTheLock(t)
			if err != nil {
				t.Error(err)
			}
		}
	}
	err := w.here.Do(func() error {
		return raced.Add(t.Context(), w.ifindex, ours.Program, Options{Run: Run{ProceedOn: onPass}})
	})
	if err != nil || n != 3 {
		t.Errorf("add after %d lost races: %v", n, err)
	}
	if got := w.running(t); got != "other ours" {
		t.Errorf("components are %q, want both", got)
	}
	w.meets(t, "ours", ours)
	w.meets(t, "the other", other)
	w.mustRemove(t, ours.id, other.id)
}

// swapBehindTheLock replaces the dispatcher by one with the same components, as libxdp may while others hold the lock,
// and removes the old one's pins, which libxdp does when it has the lock. The caller is in the namespace.
func (w *world) swapBehindTheLock(t testing.TB) error {
	t.Helper()
	old, err := w.open(w.ifindex)
	if err != nil {
		return err
	}
	defer old.close()
	fresh, err := build(old.version, old.slots)
	if err != nil {
		return err
	}
	defer fresh.close()
	return errors.Join(
		fresh.pin(w.dispatchDir(w.ifindex, fresh.id), w.reached),
		replace(w.ifindex, old.mode, old.prog, fresh.prog),
		dismantle(w.dispatchDir(w.ifindex, old.id), w.reached),
	)
}
