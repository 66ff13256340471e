// SPDX-License-Identifier: Apache-2.0

// Command writer shows how an application writes a map of its bpfvol volume with bpf(2): open the pin in rw/, which is there
// if the attribute maps says flows:rw and a policy grants it, then use it like any map. It needs no capability, only a
// seccomp profile that allows bpf(2) for the commands it uses, such as deploy/seccomp/bpf-writer.json.
//
//	writer DIR ADDRESS PACKETS        the count of UDP packets from ADDRESS goes on from PACKETS
package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
)

// Flow and Traffic have the layout of struct flow and struct traffic in bpf/count.bpf.c.
type (
	Flow struct {
		Source   [4]byte
		Protocol uint32
	}
	Traffic struct{ Packets, Bytes uint64 }
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: writer DIR ADDRESS PACKETS")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
}

func write(dir, address, count string) error {
	source, err := netip.ParseAddr(address)
	if err != nil {
		return err
	}
	if !source.Is4() {
		return fmt.Errorf("%s: not an IPv4 address, which is all that count.bpf.c counts", address)
	}
	packets, err := strconv.ParseUint(count, 10, 64)
	if err != nil {
		return err
	}
	flows, err := ebpf.LoadPinnedMap(filepath.Join(dir, "rw", "flows"), nil)
	if err != nil {
		return err
	}
	defer flows.Close()
	const udp = 17
	return flows.Put(Flow{Source: source.As4(), Protocol: udp}, Traffic{Packets: packets})
}
