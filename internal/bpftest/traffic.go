// SPDX-License-Identifier: Apache-2.0

package bpftest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// SendUDP sends n datagrams of 18 bytes, 60 with the headers, from the namespace to port 9 (discard) of an address.
func (ns *NetNS) SendUDP(t testing.TB, to netip.Addr, n int) {
	t.Helper()
	err := ns.Do(func() error {
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.WriteToUDPAddrPort(make([]byte, 18), netip.AddrPortFrom(to, 9)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("send %d datagrams to %v: %v", n, to, err)
	}
}

// ErrNoReply is what Ping returns when the echo request got no answer.
var ErrNoReply = errors.New("no reply")

// Ping sends one ICMP echo request from the namespace and waits at most half a second for its answer.
func (ns *NetNS) Ping(to netip.Addr) error {
	return ns.Do(func() error {
		c, err := net.ListenPacket("ip4:icmp", "0.0.0.0")
		if err != nil {
			return err
		}
		defer c.Close()
		request := echoRequest(uint16(os.Getpid()))
		if _, err := c.WriteTo(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			return err
		}
		for reply := make([]byte, 1500); ; {
			n, from, err := c.ReadFrom(reply)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("ping %v: %w", to, ErrNoReply)
			} else if err != nil {
				return err
			}
			if n >= 8 && reply[0] == 0 && string(reply[4:8]) == string(request[4:8]) && from.String() == to.String() {
				return nil
			}
		}
	})
}

// echoRequest builds an ICMP echo request (RFC 792) of 64 bytes.
func echoRequest(id uint16) []byte {
	b := make([]byte, 64)
	b[0] = 8 // echo
	binary.BigEndian.PutUint16(b[4:], id)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}
