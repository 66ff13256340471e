// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Verdicts of include/uapi/linux/: "go on".
const (
	xdpPass         = 2
	tcNext          = -1
	netfilterAccept = 1
	skPass          = 1
)

// loopback is the index of lo in a fresh network namespace, where it is the only device.
const loopback = 1

// networkProbes attach to what passes through a network namespace, in one made for each of them.
func networkProbes() []probe {
	net := []capability{unix.CAP_NET_ADMIN, unix.CAP_BPF}
	return []probe{
		{name: "xdp", what: "hook xdp", netns: true, caps: net, kernel: "CONFIG_BPF_SYSCALL and CONFIG_NET, version 5.9 or later", try: tryXDP},
		{name: "tcx", what: "hook tc, in its own place beside others", netns: true, caps: net, kernel: "CONFIG_NET_XGRESS, version 6.6 or later; until then bpfvol uses cls_bpf", try: tryTCX},
		{name: "cls_bpf", what: "hook tc on kernels without tcx", netns: true, caps: net, kernel: "CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS", try: tryClsBPF},
		{name: "netfilter", what: "hook netfilter", netns: true, caps: net, kernel: "CONFIG_NETFILTER_BPF_LINK, version 6.4 or later", try: tryNetfilter},
		{name: "skLookup", what: "hook skLookup", netns: true, caps: net, kernel: "CONFIG_BPF_SYSCALL and CONFIG_INET, version 5.9 or later", try: trySKLookup},
		{name: "netkit", what: "hook netkit", netns: true, caps: net, kernel: "CONFIG_NETKIT, version 6.7 or later", try: tryNetkit},
	}
}

// attached ends an attachment that was made to see whether it can be.
func attached(l link.Link, err error) error {
	if err != nil {
		return err
	}
	return l.Close()
}

func attachXDP(device int, mode link.XDPAttachFlags) error {
	return with(returning(xdpPass, ebpf.XDP, ebpf.AttachXDP), func(prog *ebpf.Program) error {
		return attached(link.AttachXDP(link.XDPOptions{Program: prog, Interface: device, Flags: mode}))
	})
}

// tryXDP tries the modes in the order of mode "auto". One of them will do.
func tryXDP() (string, error) {
	native, generic := nativeXDP(), attachXDP(loopback, link.XDPGenericMode)
	switch {
	case native != nil && generic != nil:
		return "", fmt.Errorf("%w; generic on lo: %w", native, generic)
	case native != nil:
		return "generic on lo; not " + oneLine(native), nil
	case generic != nil:
		return "native on veth; not generic on lo: " + oneLine(generic), nil
	}
	return "native on veth, generic on lo", nil
}

func nativeXDP() error {
	veth, err := addLink(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "doctor0"}, PeerName: "doctor1"})
	if err == nil {
		err = attachXDP(veth, link.XDPDriverMode)
	}
	if err != nil {
		return fmt.Errorf("native on veth: %w", err)
	}
	return nil
}

// addLink makes a device. It goes with its network namespace.
func addLink(l netlink.Link) (index int, err error) {
	if err := netlink.LinkAdd(l); err != nil {
		return 0, fmt.Errorf("make a %s device: %w", l.Type(), err)
	}
	made, err := netlink.LinkByName(l.Attrs().Name)
	if err != nil {
		return 0, err
	}
	return made.Attrs().Index, nil
}

func tryTCX() (string, error) {
	return "ingress and egress of lo", errors.Join(
		attachTCX(ebpf.AttachTCXIngress), attachTCX(ebpf.AttachTCXEgress))
}

func attachTCX(direction ebpf.AttachType) error {
	return with(returning(tcNext, ebpf.SchedCLS, direction), func(prog *ebpf.Program) error {
		return attached(link.AttachTCX(link.TCXOptions{Interface: loopback, Program: prog, Attach: direction}))
	})
}

func tryClsBPF() (string, error) {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: loopback, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		return "", fmt.Errorf("add clsact: %w", err)
	}
	err := with(returning(tcNext, ebpf.SchedCLS, 0), func(prog *ebpf.Program) error {
		filter := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: loopback, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
			Fd:          prog.FD(), Name: "bpfvol_doctor", DirectAction: true,
		}
		if err := netlink.FilterAdd(filter); err != nil {
			return fmt.Errorf("add a bpf filter: %w", err)
		}
		return nil
	})
	if err := errors.Join(err, netlink.QdiscDel(qdisc)); err != nil {
		return "", err
	}
	return "a direct-action filter on clsact of lo", nil
}

func tryNetfilter() (string, error) {
	at := &volume.Netfilter{Family: "ipv4", Hook: "localIn"}
	return at.String(), atHook(returning(netfilterAccept, ebpf.Netfilter, ebpf.AttachNetfilter), at)
}

func trySKLookup() (string, error) {
	return "in a network namespace", atHook(returning(skPass, ebpf.SkLookup, ebpf.AttachSkLookup), &volume.SKLookup{})
}

func tryNetkit() (string, error) {
	device := &netlink.Netkit{LinkAttrs: netlink.LinkAttrs{Name: "doctor0"}, Mode: netlink.NETKIT_MODE_L2}
	device.SetPeerAttrs(&netlink.LinkAttrs{Name: "doctor1"})
	if _, err := addLink(device); err != nil {
		return "", err
	}
	return "a netkit device and its peer", errors.Join(
		atHook(returning(tcNext, ebpf.SchedCLS, ebpf.AttachNetkitPrimary), &volume.Netkit{Interfaces: []string{device.Name}}),
		atHook(returning(tcNext, ebpf.SchedCLS, ebpf.AttachNetkitPeer), &volume.Netkit{Interfaces: []string{device.Name}, Peer: true}))
}
