// SPDX-License-Identifier: Apache-2.0

// Command reader shows how an application reads a map of its bpfvol volume with bpf(2): open the pin read-only, then
// use it like any map. It needs no capability, only a seccomp profile that allows bpf(2) for the commands it uses, such as
// deploy/seccomp/bpf-reader.json; under the default profile, read json/<map> instead.
//
//	reader DIR        prints the map "flows" of the volume mounted at DIR
package main

//go:generate sh -c "go -C ../../../tools/seccomp run . reader >../../helm/bpfvol/files/bpf-reader.json"
//go:generate sh -c "go -C ../../../tools/seccomp run . writer >../../helm/bpfvol/files/bpf-writer.json"

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

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
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: reader DIR")
		os.Exit(2)
	}
	if err := read(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "reader:", err)
		os.Exit(1)
	}
}

func read(dir string) error {
	// Without ReadOnly the kernel answers EROFS: the volume's file system is read-only.
	flows, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", "flows"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer flows.Close()
	var flow Flow
	var traffic Traffic
	entries := flows.Iterate()
	for entries.Next(&flow, &traffic) {
		fmt.Printf("%s protocol %d: %d packets, %d bytes\n", netip.AddrFrom4(flow.Source), flow.Protocol, traffic.Packets, traffic.Bytes)
	}
	return entries.Err()
}
