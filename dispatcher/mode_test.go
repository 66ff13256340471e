// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// kernelMode asks the kernel how an XDP program is attached.
func (w *world) kernelMode(t testing.TB) (mode volume.XDPMode) {
	t.Helper()
	err := w.here.Do(func() error {
		l, err := netlink.LinkByIndex(w.point.IfIndex)
		if err != nil {
			return err
		}
		switch l.Attrs().Xdp.AttachMode {
		case 1: // XDP_ATTACHED_DRV
			mode = volume.XDPNative
		case 2: // XDP_ATTACHED_SKB
			mode = volume.XDPGeneric
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return mode
}

func TestXDPRunsInTheModeAskedFor(t *testing.T) {
	for asked, want := range map[volume.XDPMode]volume.XDPMode{
		volume.XDPAuto: volume.XDPNative, volume.XDPNative: volume.XDPNative, volume.XDPGeneric: volume.XDPGeneric,
	} {
		t.Run(string(asked), func(t *testing.T) {
			w := newWorld(t, "xdp")
			prog, packets := w.program(t, "count", 2)
			if err := w.attachMode(first, prog, asked); err != nil {
				t.Fatal(err)
			}
			if got := w.kernelMode(t); got != want {
				t.Errorf("kernel says %q, want %q", got, want)
			}
			if st, err := w.Status(); err != nil || st[0].Mode != want {
				t.Errorf("status says %v, %v, want %q", st, err, want)
			}
			w.send(t, 5)
			if n := counted(t, packets, 5); n < 5 {
				t.Errorf("%d of 5 packets counted", n)
			}
			w.mustDetach(t, first.Volume)
		})
	}
}

func TestXDPChangesMode(t *testing.T) {
	w := newWorld(t, "xdp")
	prog, _ := w.program(t, "count", 2)
	for _, mode := range []volume.XDPMode{volume.XDPNative, volume.XDPGeneric, volume.XDPNative} {
		if err := w.attachMode(first, prog, mode); err != nil {
			t.Fatal(err)
		}
		if got := w.kernelMode(t); got != mode {
			t.Errorf("kernel says %q, want %q", got, mode)
		}
	}
	w.mustDetach(t, first.Volume)
}

// All members of an interface share one mode: auto takes what is there, and another one is refused.
func TestMembersShareTheMode(t *testing.T) {
	modes := []volume.XDPMode{volume.XDPNative, volume.XDPGeneric}
	for i, has := range modes {
		wants := modes[1-i]
		t.Run(string(has), func(t *testing.T) {
			w := newWorld(t, "xdp")
			one := first
			one.ProceedOn = proceedOnPass(w)
			a, aPackets := w.program(t, "a", 2)
			b, bPackets := w.program(t, "b", 2)
			if err := w.attachMode(one, a, has); err != nil {
				t.Fatal(err)
			}
			refused := func() {
				t.Helper()
				w.unchanged(t, func() {
					err := w.attachMode(second, b, wants)
					want := fmt.Sprintf(`xdp veth0: runs in %s mode for program "count" and cannot run in %s mode, too; use mode auto, which takes what is there`, has, wants)
					if !errors.Is(err, ErrMode) || err.Error() != want {
						t.Errorf("error is %v, want %q", err, want)
					}
				})
			}
			refused()
			if at := w.mustAttach(t, second, b); at.Mode != has {
				t.Errorf("attached in mode %q, want %q", at.Mode, has)
			}
			refused() // also to one that is there already
			if got := w.kernelMode(t); got != has {
				t.Errorf("kernel says %q, want %q", got, has)
			}
			w.wantRun(t, aPackets, bPackets)
			w.mustDetach(t, one.Volume)
			w.mustDetach(t, second.Volume)
		})
	}
}

// An old kernel gets the filter without being told to.
func TestTCXWhereTheKernelHasIt(t *testing.T) {
	w := newWorld(t, "clsact")
	w.classic = false
	prog, packets := w.program(t, "count", 0)
	want := carrierTCX
	err := w.here.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: w.point.IfIndex, Program: prog.Program, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, ebpf.ErrNotSupported) {
			want = carrierClsact
			return nil
		} else if err != nil {
			return err
		}
		return l.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	w.mustAttach(t, first, prog)
	if st, err := w.Status(); err != nil || st[0].Carrier != want {
		t.Errorf("status is %+v, %v, want carrier %s", st, err, want)
	}
	w.send(t, 5)
	if n := counted(t, packets, 5); n < 5 {
		t.Errorf("%d of 5 packets counted", n)
	}
	w.mustDetach(t, first.Volume)
}

// The loopback driver has no native XDP.
func TestDriverWithoutNativeXDPRunsGeneric(t *testing.T) {
	w := newWorld(t, "xdp")
	w.point = w.resolve(t, &volume.XDP{Interfaces: []string{"lo"}})
	prog, _ := w.program(t, "count", 2)
	err := w.attachMode(first, prog, volume.XDPNative)
	if !errors.Is(err, ebpf.ErrNotSupported) || !strings.HasSuffix(err.Error(), " mode: not supported by the interface's driver; use mode auto or generic") {
		t.Errorf("error is %v, want not supported", err)
	}
	at := w.mustAttach(t, first, prog)
	if at.Mode != volume.XDPGeneric {
		t.Errorf("mode is %q, want generic", at.Mode)
	}
	w.mustDetach(t, first.Volume)
}
