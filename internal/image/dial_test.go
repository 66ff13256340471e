// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

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
