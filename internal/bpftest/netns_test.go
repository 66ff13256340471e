// SPDX-License-Identifier: Apache-2.0

package bpftest

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

func TestPairReachesEachOther(t *testing.T) {
	a, b := Pair(t)
	if err := a.Ping(b.Addr); err != nil {
		t.Error(err)
	}
	if err := b.Ping(a.Addr); err != nil {
		t.Error(err)
	}
}

func TestPingSaysWhenThereIsNoReply(t *testing.T) {
	a, b := Pair(t)
	drop, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 1), asm.Return(), // XDP_DROP
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer drop.Close()
	index := b.Index(t, "veth0")
	err = b.Do(func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: drop, Interface: index})
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Ping(b.Addr); !errors.Is(err, ErrNoReply) {
		t.Errorf("got %v, want no reply", err)
	}
}

func TestSendUDPSendsAsManyAsAsked(t *testing.T) {
	a, b := Pair(t)
	var c *net.UDPConn
	err := b.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 9})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a.SendUDP(t, b.Addr, 3)
	for i := range 3 {
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := c.ReadFrom(make([]byte, 100)); err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
	}
}

func TestDoLeavesOtherGoroutinesWhereTheyAre(t *testing.T) {
	ns := NewNetNS(t)
	ns.Veth(t, "in_a", "in_b")
	names := func() (names []string) {
		all, err := net.Interfaces()
		if err != nil {
			t.Error(err)
		}
		for _, i := range all {
			names = append(names, i.Name)
		}
		return names
	}
	var inside []string
	if err := ns.Do(func() error { inside = names(); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(inside) != 3 {
		t.Errorf("inside: %q, want lo and two more", inside)
	}
	for range 20 {
		done := make(chan []string)
		go func() { done <- names() }()
		for _, name := range <-done {
			if name == "in_a" {
				t.Fatal("a goroutine outside sees the namespace's interfaces")
			}
		}
	}
}

func TestClangMakesALoadableObject(t *testing.T) {
	object := Clang(t, `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("xdp") int pass(struct xdp_md *ctx) { return XDP_PASS; }
`)
	if string(object[:4]) != "\x7fELF" {
		t.Errorf("got %q..., want an ELF object", object[:min(4, len(object))])
	}
}
