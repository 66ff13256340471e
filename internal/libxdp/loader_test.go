// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// status is what xdp-loader lists of veth0: a line each, of priority, name, id and chain call actions.
func (w *world) status(t testing.TB) (lines []string) {
	t.Helper()
	for line := range strings.Lines(w.mustLoader(t, "status", "veth0")) {
		// " =>              20     their_pass                   17   3b185187f1855c4c  XDP_PASS"
		if f := strings.Fields(line); len(f) == 6 && f[0] == "=>" {
			lines = append(lines, strings.Join([]string{f[1], f[2], f[3], f[5]}, " "))
		}
	}
	return lines
}

func (w *world) wantStatus(t testing.TB, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, w.status(t)); diff != "" {
		t.Errorf("xdp-loader status (-want +got):\n%s", diff)
	}
}

func (w *world) unload(t testing.TB, p program) {
	t.Helper()
	w.mustLoader(t, "unload", "veth0", "-i", strconv.Itoa(int(p.id)))
}

func TestLoaderJoinsOurDispatcher(t *testing.T) {
	for _, mode := range []string{"native", "skb"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			ours := w.program(t, "ours_with_a_long_name", pass)
			o := Options{Run: Run{Priority: 20, ProceedOn: onPass | onDrop}}
			if mode == "skb" {
				o.Mode = "generic"
			}
			w.mustAdd(t, ours, o)
			w.wantStatus(t, fmt.Sprintf("20 ours_with_a_long_name %d XDP_DROP,XDP_PASS", ours.id))
			theirs := w.their(t, "their_pass", "-m", mode, "-P", "10")
			late := w.their(t, "their_drop", "-m", mode, "-P", "30")
			w.wantStatus(t,
				fmt.Sprintf("10 their_pass %d XDP_PASS", theirs.id),
				fmt.Sprintf("20 ours_with_a_long_name %d XDP_DROP,XDP_PASS", ours.id),
				fmt.Sprintf("30 their_drop %d XDP_PASS", late.id))
			w.meets(t, "theirs", theirs)
			w.meets(t, "ours", ours)
			w.meets(t, "their late one", late)
			if err := w.ping(); err == nil {
				t.Error("packets got by their dropper")
			}
			w.unload(t, late)
			w.unload(t, theirs)
			w.meets(t, "ours, which stays", ours)
			w.wantStatus(t, fmt.Sprintf("20 ours_with_a_long_name %d XDP_DROP,XDP_PASS", ours.id))

			// And the other one leaves first.
			theirs = w.their(t, "their_pass", "-m", mode)
			w.mustRemove(t, ours.id)
			w.wantStatus(t, fmt.Sprintf("50 their_pass %d XDP_PASS", theirs.id))
			w.meets(t, "theirs, which stays", theirs)
			w.missed(t, "ours", ours, theirs)
			w.unload(t, theirs)
		})
	}
}

func TestWeJoinLoadersDispatcher(t *testing.T) {
	for _, mode := range []string{"native", "skb"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			theirs := w.their(t, "their_pass", "-m", mode, "-P", "10")
			ours := w.program(t, "ours", drop)
			w.mustAdd(t, ours, Options{Run: Run{Priority: 20, ProceedOn: onPass}})
			w.wantStatus(t,
				fmt.Sprintf("10 their_pass %d XDP_PASS", theirs.id),
				fmt.Sprintf("20 ours %d XDP_PASS", ours.id))
			w.meets(t, "theirs", theirs)
			w.meets(t, "ours", ours)
			if err := w.ping(); err == nil {
				t.Error("packets got by our dropper")
			}
			// In front of theirs it keeps packets from them.
			w.mustAdd(t, ours, Options{Run: Run{Priority: 5, ProceedOn: onPass}})
			w.missed(t, "theirs", theirs, ours)
			w.unload(t, theirs)
			w.meets(t, "ours, which stays", ours)
			w.wantStatus(t, fmt.Sprintf("5 ours %d XDP_PASS", ours.id))
			w.mustRemove(t, ours.id)
			if err := w.ping(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestForeignSettingsStay(t *testing.T) {
	w := newWorld(t)
	a := w.their(t, "their_frags", "-P", "4000000000", "-A", "XDP_ABORTED,XDP_DROP,XDP_PASS,XDP_TX,XDP_REDIRECT")
	b := w.their(t, "their_pass", "-P", "7", "-A", "XDP_PASS,XDP_TX")
	before := w.mustRead(t).Components
	want := []Component{
		{ID: b.id, Name: "their_pass", Run: Run{Priority: 7, ProceedOn: 1<<2 | 1<<3}},
		{ID: a.id, Name: "their_frags", Run: Run{Priority: 4000000000, ProceedOn: 1<<5 - 1}}, // 1.3.1 does not notice its frags
	}
	if diff := cmp.Diff(want, before); diff != "" {
		t.Errorf("components as xdp-loader made them (-want +got):\n%s", diff)
	}
	for i := range 3 {
		ours := w.program(t, fmt.Sprint("ours", i), pass)
		w.mustAdd(t, ours, Options{Run: Run{Priority: 7 << (8 * i), ProceedOn: onPass}})
		w.mustRemove(t, ours.id)
	}
	if diff := cmp.Diff(before, w.mustRead(t).Components); diff != "" {
		t.Errorf("components after ours came and went (-before +after):\n%s", diff)
	}
	// Theirs say that it can be left to us to take them away.
	w.mustRemove(t, a.id, b.id)
}

// What xdp-loader 1.3.1 does not know it leaves alone, and so do we.
func TestNewerVersionIsKept(t *testing.T) {
	w := newWorld(t)
	w.Version = version3
	a, b := w.program(t, "a", pass), w.program(t, "b", pass)
	w.mustAdd(t, a, Options{Run: Run{ProceedOn: onPass}})
	w.Version = 0
	w.mustAdd(t, b, Options{Run: Run{ProceedOn: onPass, Frags: true}})
	if out, err := w.loader(t, "load", "veth0", theirFile(t), "-n", "their_pass"); err == nil {
		t.Errorf("xdp-loader, which knows version 2, changed one of 3: %s", out)
	}
	want := &Dispatcher{Mode: "native", Version: 3, Components: []Component{
		{ID: a.id, Name: "a", Run: Run{ProceedOn: onPass}},
		{ID: b.id, Name: "b", Run: Run{ProceedOn: onPass, Frags: true}},
	}}
	got := w.mustRead(t)
	want.ID = got.ID
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("dispatcher (-want +got):\n%s", diff)
	}
	w.meets(t, "the first", a)
	w.meets(t, "the second", b)
	w.mustRemove(t, a.id, b.id)
}

// Where the kernel looks at what a slot says, xdp-loader 1.3.1 cannot change a set with a program that changes packets:
// its slots do not say that they do. It then leaves everything as it is. xdp-tools 1.5.5 have mended it.
func TestPacketChangersMix(t *testing.T) {
	w := newWorld(t)
	looks := kernelLooksAtSlots(t, w)
	ours, plain := w.shifter(t, "ours"), w.program(t, "plain", pass)
	w.mustAdd(t, plain, Options{Run: Run{Priority: 20, ProceedOn: onPass}})
	theirs := w.their(t, "their_pass", "-P", "10")
	w.mustAdd(t, ours, Options{Run: Run{Priority: 30, ProceedOn: onPass}})
	all := []program{theirs, plain, ours}
	for _, p := range all {
		w.meets(t, fmt.Sprintf("program %d", p.id), p)
	}
	before := w.mustRead(t)
	out, err := w.loader(t, "load", "-n", "their_shift", "-P", "40", "veth0", theirFile(t))
	if err != nil && !looks {
		t.Errorf("xdp-loader load: %v: %s", err, out)
	}
	if err == nil {
		cs := w.mustRead(t).Components
		all = append(all, counterOf(t, cs[len(cs)-1].ID))
	} else if diff := cmp.Diff(before, w.mustRead(t)); diff != "" {
		t.Errorf("dispatcher after xdp-loader failed (-before +after):\n%s", diff)
	}
	for _, p := range all {
		w.meets(t, fmt.Sprintf("program %d", p.id), p)
	}
	for _, p := range all {
		w.mustRemove(t, p.id)
	}
}

// kernelLooksAtSlots reports whether a program that changes packets is refused at a slot that does not.
func kernelLooksAtSlots(t testing.TB, w *world) bool {
	t.Helper()
	spec := generate("unchanging", []uint32{0}, 0)
	spec.Instructions = slices.DeleteFunc(spec.Instructions, func(ins asm.Instruction) bool { return ins.IsBuiltinCall() })
	unchanging, err := ebpf.NewProgram(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer unchanging.Close()
	l, err := link.AttachFreplace(unchanging, slotName(0), w.shifter(t, "shifter").Program)
	if err != nil {
		if !errors.Is(err, unix.EINVAL) {
			t.Fatal(err)
		}
		return true
	}
	l.Close()
	return false
}
