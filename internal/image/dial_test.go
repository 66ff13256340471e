// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Every form of an address that is the node itself, its link, or a metadata service; and some that are not.
func TestForbiddenAddresses(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1", "127.255.255.255", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "ff02::1", "ff01::1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1",
		"100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254",
	} {
		if !forbidden(netip.MustParseAddr(a)) {
			t.Errorf("%s may be dialled", a)
		}
	}
	for _, a := range []string{"10.0.0.1", "192.168.1.1", "8.8.8.8", "fd00::1", "2001:db8::1", "64:ff9b::808:808", "2002:808:808::1", "::ffff:10.0.0.1"} {
		if forbidden(netip.MustParseAddr(a)) {
			t.Errorf("%s may not be dialled", a)
		}
	}
}

// A name that no one lists and that a name server leads to this node, its link or a metadata service is not contacted.
func TestDialRefusesWhatNameServersSay(t *testing.T) {
	answers := map[string]string{
		"four.example.": "127.0.0.1", "six.example.": "::1", "metadata.example.": "169.254.169.254", "mapped.example.": "::ffff:127.0.0.1", "translated.example.": "64:ff9b::7f00:1",
	}
	answer(t, answers)
	for name := range answers {
		host := strings.TrimSuffix(name, ".")
		conn, err := newGuard(Registries{}).dial(t.Context(), "tcp", host+":443", time.Second)
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, ErrHostNotAllowed) {
			t.Errorf("%s: got %v, want ErrHostNotAllowed", host, err)
		}
	}
}

// answer makes this process ask a name server for the length of the test that gives each name one address.
func answer(t *testing.T, addresses map[string]string) {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = before
		server.Close()
	})
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Additionals = true, nil
			addr, err := netip.ParseAddr(addresses[q.Name.String()])
			header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
			switch {
			case err == nil && addr.Is4() && q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}}}
			case err == nil && addr.Is6() && q.Type == dnsmessage.TypeAAAA:
				m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}}
			}
			if packed, err := m.Pack(); err == nil {
				server.WriteTo(packed, from)
			}
		}
	}()
}

// A name server can say at any time that a name leads to this node: what counts is the address that is dialled.
func TestDialRefusesAddressesOfTheNode(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := newGuard(Registries{}).dial(t.Context(), "tcp", l.Addr().String(), time.Second)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, ErrHostNotAllowed) || !strings.Contains(err.Error(), "leads to this node") {
		t.Errorf("got error %v, want ErrHostNotAllowed", err)
	}
	listed := Registries{hosts: map[string]hostConfig{l.Addr().String(): {}}}
	conn, err = newGuard(listed).dial(t.Context(), "tcp", l.Addr().String(), time.Second)
	if err != nil {
		t.Fatalf("listed: %v", err)
	}
	conn.Close()
}
