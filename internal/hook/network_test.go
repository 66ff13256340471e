// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// drops loads a program that lets nothing pass: 0 is NF_DROP, and SK_DROP.
func drops(t *testing.T, typ ebpf.ProgramType, attach ebpf.AttachType) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "drop", Type: typ, AttachType: attach, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

// wantRuns waits until a counter has that many: receiving can end after sending has.
func wantRuns(t *testing.T, runs *ebpf.Map, want uint64) {
	t.Helper()
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) {
		got, _ := runsOf(t, runs)
		if got == want {
			return
		}
		if got > want || time.Now().After(end) {
			t.Errorf("the program ran %d times, want %d", got, want)
			return
		}
	}
}

func netfilterCounter(t *testing.T) (*ebpf.Program, *ebpf.Map) {
	t.Helper()
	bpftest.SkipOnOldKernel(t, "6.4", "netfilter programs")
	return counter(t, ebpf.Netfilter, ebpf.AttachNetfilter)
}

func TestNetfilterProgramsRunInOrderOfPriority(t *testing.T) {
	p := inNetNS(t)
	counts, runs := netfilterCounter(t)
	p.attached(t, counts, &volume.Netfilter{Family: "ipv4", Hook: "localOut", Priority: 20})
	dropping := p.attached(t, drops(t, ebpf.Netfilter, ebpf.AttachNetfilter), &volume.Netfilter{Family: "ipv4", Hook: "localOut", Priority: 10})
	send := func() error {
		return p.do(func() error {
			c, err := net.Dial("udp4", "127.0.0.1:9")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		})
	}
	if err := send(); !errors.Is(err, unix.EPERM) {
		t.Errorf("send: %v, want it dropped", err)
	}
	wantRuns(t, runs, 0)
	dropping[0].Close()
	if err := send(); err != nil {
		t.Error(err)
	}
	wantRuns(t, runs, 2) // and the answer that nobody is there
}

// A packet of the machine to itself meets every hook but one, and one that it passes on meets that.
func TestNetfilterProgramsRunAtEachHook(t *testing.T) {
	node, peer := bpftest.Pair(t)
	elsewhere := netip.MustParseAddr("10.9.9.9")
	err := errors.Join(node.Do(func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("0"), 0),
			route(elsewhere, nil))
	}), peer.Do(func() error { return route(elsewhere, node.Addr.AsSlice()) }))
	if err != nil {
		t.Fatal(err)
	}
	here := place{here: node}
	for family, address := range map[string]string{"ipv4": "127.0.0.1:9", "ipv6": "[::1]:9"} {
		for hook := range netfilterHooks {
			if family == "ipv6" && hook == "forward" {
				continue // to route it is the same again
			}
			t.Run(family+" "+hook, func(t *testing.T) {
				prog, runs := netfilterCounter(t)
				here.attached(t, prog, &volume.Netfilter{Family: family, Hook: hook, Priority: 10})
				if hook == "forward" {
					peer.SendUDP(t, elsewhere, 1)
					wantRuns(t, runs, 1)
					return
				}
				err := here.do(func() error {
					c, err := net.Dial("udp", address)
					if err != nil {
						return err
					}
					defer c.Close()
					_, err = c.Write([]byte("x"))
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				wantRuns(t, runs, 2) // and the answer that nobody is there
			})
		}
	}
}

// route leads to an address through veth0.
func route(to netip.Addr, via net.IP) error {
	veth, err := netlink.LinkByName("veth0")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Attrs().Index, Dst: netlink.NewIPNet(to.AsSlice()), Gw: via})
}

func TestNetfilterDefragSeesWholePackets(t *testing.T) {
	node, peer := bpftest.Pair(t)
	here := place{here: node}
	whole, wholes := netfilterCounter(t)
	part, parts := counter(t, ebpf.Netfilter, ebpf.AttachNetfilter)
	receive := func() {
		t.Helper()
		var c *net.UDPConn
		err := node.Do(func() (err error) {
			c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: node.Addr.AsSlice(), Port: 9})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		err = peer.Do(func() error {
			out, err := net.Dial("udp4", netip.AddrPortFrom(node.Addr, 9).String())
			if err != nil {
				return err
			}
			defer out.Close()
			_, err = out.Write(make([]byte, 4000)) // three packets, of 1500 bytes at most
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(make([]byte, 5000)); n != 4000 || err != nil {
			t.Fatalf("received %d bytes, %v", n, err)
		}
	}
	at := volume.Netfilter{Family: "ipv4", Hook: "preRouting", Priority: -300}
	links := here.attached(t, part, &at)
	receive()
	wantRuns(t, parts, 3)
	links[0].Close()
	at.Defrag = true
	here.attached(t, whole, &at)
	receive()
	wantRuns(t, wholes, 1)
}

// The kernel wants an order between any two.
func TestNetfilterPriorityIsForOne(t *testing.T) {
	p := inNetNS(t)
	prog, _ := netfilterCounter(t)
	h := &volume.Netfilter{Family: "ipv4", Hook: "localIn", Priority: 5}
	p.attached(t, prog, h)
	links, err := p.attach(prog, h)
	if want := "netfilter ipv4 localIn: something has priority 5 there, and no two may have the same; choose another"; !errors.Is(err, ErrUnfit) || err.Error() != want || links != nil {
		t.Errorf("got %v, %v, want %s", links, err, want)
	}
}

// Each of the programs is asked, and one is enough to refuse.
func TestSKLookupProgramRefuses(t *testing.T) {
	p := inNetNS(t)
	prog, runs := counter(t, ebpf.SkLookup, ebpf.AttachSkLookup)
	p.attached(t, prog, &volume.SKLookup{})
	err := p.do(func() error {
		l, err := net.Listen("tcp4", "127.0.0.1:9")
		if err != nil {
			return err
		}
		defer l.Close()
		dial := func() error {
			c, err := net.Dial("tcp4", "127.0.0.1:9")
			if err == nil {
				c.Close()
			}
			return err
		}
		if err := dial(); err != nil {
			return fmt.Errorf("before: %w", err)
		}
		links, err := Attach(drops(t, ebpf.SkLookup, ebpf.AttachSkLookup), &volume.SKLookup{})
		if err != nil {
			return err
		}
		if err := dial(); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect: %v, want it refused", err)
		}
		links[0].Close()
		return dial()
	})
	if err != nil {
		t.Error(err)
	}
	if n, _ := runsOf(t, runs); n < 3 {
		t.Errorf("the other program ran %d times, want 3 at least", n)
	}
}

func TestFullSKLookupSaysSo(t *testing.T) {
	p := inNetNS(t)
	prog, _ := counter(t, ebpf.SkLookup, ebpf.AttachSkLookup)
	for range 64 {
		p.attached(t, prog, &volume.SKLookup{})
	}
	_, err := p.attach(prog, &volume.SKLookup{})
	if want := "skLookup: 64 programs run there, more than that the kernel does not take; do without one of them"; !errors.Is(err, unix.E2BIG) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestNetkitErrorsSayWhy(t *testing.T) {
	a, b := bpftest.Netkit(t)
	bpftest.NothingLeft(t)
	a.Veth(t, "veth0", "veth1")
	for _, c := range []struct {
		in   *bpftest.NetNS
		hook *volume.Netkit
		kind error
		want string
	}{
		{a, &volume.Netkit{Interfaces: []string{"nk9"}}, ErrMissing, `interface "nk9" does not exist; did you mean "nk0"?`},
		{a, &volume.Netkit{Interfaces: []string{"nk0", "veth0"}}, ErrUnfit, `interface "veth0": not a netkit device; use tc`},
		{b, &volume.Netkit{Interfaces: []string{"nk1"}}, ErrUnfit, `interface "nk1": the peer of a netkit device; name the device, and write peer: true`},
	} {
		prog, runs := counter(t, ebpf.SchedCLS, ebpf.AttachNetkitPrimary)
		if links, err := (place{here: c.in}).attach(prog, c.hook); !errors.Is(err, c.kind) || err.Error() != c.want || links != nil {
			t.Errorf("got %v, %v, want %s", links, err, c.want)
		}
		a.SendUDP(t, b.Addr, 1)
		if n, _ := runsOf(t, runs); n != 0 {
			t.Errorf("%s: the program runs though it was not attached to all", c.hook)
		}
	}
}

// A link outlives what it is attached to, says so if the kernel does, and can be closed.
func TestLinksOfWhatIsGoneEnd(t *testing.T) {
	for name, c := range cases(t, "") {
		if c.where == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			pin := bpftest.BPFFS(t) + "/link"
			t.Run("namespace", func(t *testing.T) { // which ends with this
				p := c.prepared(t)
				prog, runs, err := newCounter(c)
				if err != nil {
					t.Fatal(err)
				}
				defer runs.Close()
				defer prog.Close()
				links := p.attached(t, prog, c.hook)
				if err := links[0].Pin(pin); err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(name, "netkit") {
					if err := p.do(func() error { return netlink.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "nk0"}}) }); err != nil {
						t.Fatal(err)
					}
				}
			})
			if _, err := os.Stat(pin); errors.Is(err, os.ErrNotExist) {
				t.Skip("this kernel has not the hook")
			}
			l, err := link.LoadPinnedLink(pin, nil)
			if err != nil {
				t.Fatal(err)
			}
			switch c.typ {
			case ebpf.SchedCLS:
				wantGone(t, l, "the interface is gone")
			case ebpf.SkLookup:
				wantGone(t, l, "the network namespace is gone")
			default:
				wantGone(t, l, "")
			}
			if err := os.Remove(pin); err != nil {
				t.Error(err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// wantGone waits until a link says what is gone: the kernel dismantles a namespace some time after its last holder went.
func wantGone(t *testing.T, l link.Link, want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		got := Gone(info)
		if got == want {
			return
		}
		if time.Now().After(end) {
			t.Errorf("gone is %q, want %q", got, want)
			return
		}
	}
}
