// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where datagrams go to, and where they say they are from.
var (
	udpTo   = netip.MustParseAddr("10.0.0.1")
	udpFrom = netip.MustParseAddr("10.0.0.2")
)

const udpPort = 7000

// udpFrame is an Ethernet frame of 64 bytes with a UDP datagram (RFC 768, RFC 791).
func udpFrame(from, to net.HardwareAddr) []byte {
	frame := make([]byte, 64)
	copy(frame, to)
	copy(frame[6:], from)
	binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IP)
	ip := frame[14:]
	ip[0] = 4<<4 | 5 // version, length of the header in words
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	ip[8], ip[9] = 64, unix.IPPROTO_UDP
	copy(ip[12:], udpFrom.AsSlice())
	copy(ip[16:], udpTo.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	udp := ip[20:]
	binary.BigEndian.PutUint16(udp, udpPort)
	binary.BigEndian.PutUint16(udp[2:], udpPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp))) // without a checksum
	return frame
}

// sender sends one frame again and again.
type sender struct {
	socket int
	batch  [64]message
	frame  unix.Iovec
}

// message is struct mmsghdr (man 2 sendmmsg).
type message struct {
	header unix.Msghdr
	sent   uint32
	_      [4]byte
}

func newSender(ifindex int, frame []byte) (_ *sender, err error) {
	s := &sender{frame: unix.Iovec{Base: &frame[0]}}
	s.frame.SetLen(len(frame))
	for i := range s.batch {
		s.batch[i].header.Iov = &s.frame
		s.batch[i].header.SetIovlen(1)
	}
	if s.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	err = errors.Join(
		unix.Bind(s.socket, &unix.SockaddrLinklayer{Ifindex: ifindex}),
		unix.SetsockoptInt(s.socket, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
	if err != nil {
		s.close()
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	return s, nil
}

func (s *sender) close() { unix.Close(s.socket) }

// send sends a batch, or as much of it as there is room for.
func (s *sender) send() error {
	_, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.socket), uintptr(unsafe.Pointer(&s.batch[0])), uintptr(len(s.batch)), 0, 0, 0)
	if errno != 0 && errno != unix.ENOBUFS && errno != unix.EINTR {
		return fmt.Errorf("sendmmsg: %w", errno)
	}
	return nil
}
