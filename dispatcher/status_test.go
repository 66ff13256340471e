// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bpfvol/bpfvol/internal/pin"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Another process, which knows nothing but the directory, reads the same.
func TestStatusIsReadFromPins(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, _ := w.program(t, "count", carriers[w.carrier].pass)
		at := w.mustAttach(t, first, prog)
		id, err := programID(prog.Program)
		if err != nil {
			t.Fatal(err)
		}
		got, err := New(w.root, Options{}).Status()
		if err != nil {
			t.Fatal(err)
		}
		loaded := Loaded{ID: id, Name: "count"}
		want := []PointStatus{{
			Point: w.point, Carrier: strings.Fields(w.carrier)[0], Mode: at.Mode, Program: loaded,
			Members: []MemberStatus{{Member: first, Loaded: loaded, Way: Plain}},
		}}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(PointStatus{}, "Link")); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		if hasLink := got[0].Link != 0; hasLink == carriers[w.carrier].classic {
			t.Errorf("link is %d", got[0].Link)
		}
		w.mustDetach(t, first.Volume)
		if got, err := w.Status(); err != nil || len(got) > 0 {
			t.Errorf("status after Detach: %v, %v", got, err)
		}
	})
}

func TestRecordOfAnotherVersionIsRefused(t *testing.T) {
	w := newWorld(t, "xdp")
	prog, _ := w.program(t, "count", 2)
	w.mustAttach(t, first, prog)
	path := filepath.Join(w.root, w.point.dirName(), membersDir, first.Volume, first.Program, recordPin)
	s := &site{Dispatcher: w.Dispatcher}
	before, err := pin.ReadBytes(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.pinRecord(path, "future", memberRecord{Version: recordVersion + 1, Member: first}); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"Attach": func() error { _, err := w.attach(first, prog); return err }(),
		"Detach": w.Detach(t.Context(), first.Volume),
	} {
		if err == nil || !strings.Contains(err.Error(), "record has version 3, this bpfvol reads 2") {
			t.Errorf("%s: error is %v, want one about the version", name, err)
		}
	}
	if err := w.ping(); err != nil {
		t.Error(err)
	}
	if err := s.pinBytes(path, memberName, before); err != nil {
		t.Fatal(err)
	}
	w.mustDetach(t, first.Volume)
}

// The loader keeps a pin of the program it hands over, and a program name may be what a bpffs refuses.
func TestPinsOfTheCallerStay(t *testing.T) {
	w := newWorld(t, "xdp")
	prog, _ := w.program(t, "count", 2)
	pin := filepath.Join(filepath.Dir(w.root), "theirs")
	if err := prog.Pin(pin); err != nil {
		t.Fatal(err)
	}
	m := Member{Volume: "first", Program: "count.in/.._" + strings.Repeat("x", 300)}
	w.mustAttach(t, m, prog)
	if st, err := w.Status(); err != nil || st[0].Members[0].Member.Program != m.Program {
		t.Errorf("status is %v, %v", st, err)
	}
	w.mustDetach(t, m.Volume)
	if p, err := ebpf.LoadPinnedProgram(pin, nil); err != nil {
		t.Error(err)
	} else {
		p.Close()
	}
	if err := prog.Unpin(); err != nil {
		t.Error(err)
	}
}

func TestPointNamesAreReadStrictly(t *testing.T) {
	for _, name := range []string{"", "xdp", "xdp-1", "xdp-1-2-3", "tc-1-2", "tc-up-1-2", "xdp-ingress-1-2", "xdp--1-2", "xdp-1-99999999999999999999", "netkit-1-2"} {
		if p, ok := parsePoint(name); ok {
			t.Errorf("%q is read as %+v", name, p)
		}
	}
	want := Point{Kind: volume.KindTC, Direction: volume.Egress, NetNS: 18446744073709551615, IfIndex: 7}
	if got, ok := parsePoint("tc-egress-18446744073709551615-7"); !ok || got != want {
		t.Errorf("got %+v, %v", got, ok)
	}
}
