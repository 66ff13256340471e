// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// attachNetkit attaches to netkit devices of the calling thread's network namespace. The peer of one, which usually is in
// a container, is attached to by the name of the device that is here.
func attachNetkit(prog *ebpf.Program, h *volume.Netkit) ([]link.Link, error) {
	if err := wantType(prog, ebpf.SchedCLS); err != nil {
		return nil, err
	}
	at := ebpf.AttachNetkitPrimary
	if h.Peer {
		at = ebpf.AttachNetkitPeer
	}
	var links []link.Link
	for _, name := range h.Interfaces {
		l, err := attachNetkitTo(prog, name, at)
		if err != nil {
			for _, l := range links {
				err = errors.Join(err, l.Close())
			}
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

func attachNetkitTo(prog *ebpf.Program, name string, at ebpf.AttachType) (link.Link, error) {
	device, err := net.InterfaceByName(name)
	if err != nil {
		return nil, &MissingError{What: "interface", Name: name, Where: "there are", Known: interfaceNames()}
	}
	l, err := link.AttachNetkit(link.NetkitOptions{Program: prog, Interface: device.Index, Attach: at})
	switch { // drivers/net/netkit.c
	case errors.Is(err, unix.ENXIO):
		return nil, unfit("interface %s: not a netkit device; use tc", quote(name))
	case errors.Is(err, unix.EACCES):
		return nil, unfit("interface %s: the peer of a netkit device; name the device, and write peer: true", quote(name))
	case errors.Is(err, unix.ERANGE): // BPF_MPROG_MAX, include/linux/bpf_mprog.h
		return nil, full("interface "+quote(name), 64, "use another one")
	case err != nil:
		return nil, fmt.Errorf("interface %s: %w", quote(name), err)
	}
	return l, nil
}

func interfaceNames() []string {
	var names []string
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	return names
}
