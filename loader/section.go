// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// said is what a program's ELF section says of where the program attaches.
type said struct {
	hook    volume.Hook // nil where the section alone does not say it
	lacks   string      // what else must be said: "an interface"
	example string      // how one writes the attachment; "" where no hook takes the program
}

// bySection reads the section of a program. The names are libbpf's.
func bySection(prog *ebpf.ProgramSpec) said {
	section, to := strings.TrimPrefix(prog.SectionName, "?"), prog.AttachTo
	kind, _, _ := strings.Cut(section, "/")
	switch prog.Type {
	case ebpf.XDP:
		if prog.AttachType == ebpf.AttachXDP || prog.AttachType == ebpf.AttachNone {
			return need(prog, "an interface", "xdp: {interface: eth0}")
		}
	case ebpf.SchedCLS:
		direction := "ingress"
		switch {
		case prog.AttachType == ebpf.AttachNetkitPeer:
			return need(prog, "an interface", "netkit: {interface: nk0, peer: true}")
		case prog.AttachType == ebpf.AttachNetkitPrimary:
			return need(prog, "an interface", "netkit: {interface: nk0}")
		case prog.AttachType == ebpf.AttachTCXEgress, strings.Contains(section, "egress"):
			direction = "egress"
		}
		return need(prog, "an interface", "tc: {interface: eth0, direction: "+direction+"}")
	case ebpf.TracePoint:
		if group, name, ok := strings.Cut(to, "/"); ok && group != "" && name != "" {
			return says(prog, &volume.Tracepoint{Group: group, Name: name}, "tracepoint: "+to)
		}
		return need(prog, "a tracepoint", "tracepoint: group/name")
	case ebpf.RawTracepoint, ebpf.RawTracepointWritable:
		return named(prog, &volume.RawTracepoint{Name: to}, "rawTracepoint", "a tracepoint", "sched_switch")
	case ebpf.Kprobe:
		return probe(prog, kind, to)
	case ebpf.Tracing:
		switch prog.AttachType {
		case ebpf.AttachTraceRawTp:
			return named(prog, &volume.RawTracepoint{Name: to}, "rawTracepoint", "a tracepoint", "sched_switch")
		case ebpf.AttachTraceFEntry:
			return named(prog, &volume.Fentry{Function: to}, "fentry", "a kernel function", "tcp_connect")
		case ebpf.AttachTraceFExit:
			return named(prog, &volume.Fentry{Function: to, Exit: true}, "fexit", "a kernel function", "tcp_connect")
		case ebpf.AttachTraceIter:
			return named(prog, &volume.Iter{Target: to}, "iter", "a target", "task")
		}
	case ebpf.LSM:
		if prog.AttachType == ebpf.AttachLSMMac {
			return named(prog, &volume.LSM{Name: to}, "lsm", "an LSM hook", "file_open")
		}
	case ebpf.PerfEvent:
		return need(prog, "an event", "perfEvent: {event: cpu-clock, frequency: 99}")
	case ebpf.Netfilter:
		return need(prog, "a netfilter hook", "netfilter: {family: ipv4, hook: preRouting}")
	case ebpf.SkLookup:
		return says(prog, &volume.SKLookup{}, "skLookup: {}")
	}
	if isCgroup(prog.Type) {
		attach := cgroupBySection(prog)
		if attach == "" {
			return need(prog, "a cgroup and how it attaches", "cgroup: {path: kubepods.slice, attach: skb/ingress}")
		}
		return need(prog, "a cgroup", "cgroup: {path: kubepods.slice, attach: "+attach+"}")
	}
	return said{}
}

// probe reads kprobe/function+offset and uprobe/path:symbol+offset.
func probe(prog *ebpf.ProgramSpec, kind, to string) said {
	kind, _, _ = strings.Cut(kind, ".") // .s, .multi, .session
	to, offset := cutOffset(to)
	switch kind {
	case "kprobe", "kretprobe":
		h := &volume.Kprobe{Function: to, Offset: offset, Return: kind == "kretprobe"}
		if to == "" || strings.ContainsAny(to, "*?") { // a pattern is for multi links
			return need(prog, "a kernel function", kind+": do_unlinkat")
		}
		return says(prog, h, kind+": "+to)
	case "uprobe", "uretprobe":
		path, symbol, ok := strings.Cut(to, ":")
		if ok && strings.HasPrefix(path, "/") && symbol != "" && !strings.ContainsAny(symbol, "*?") {
			h := &volume.Uprobe{Path: path, Symbol: symbol, Offset: offset, Return: kind == "uretprobe"}
			return says(prog, h, fmt.Sprintf("%s: {path: %s, symbol: %s}", kind, path, symbol))
		}
		return need(prog, "a binary and a function", kind+": {path: /bin/bash, symbol: readline}")
	}
	return need(prog, "a function", "kprobe: do_unlinkat")
}

// cutOffset splits "function+0x10".
func cutOffset(s string) (string, uint64) {
	name, tail, ok := strings.Cut(s, "+")
	if !ok {
		return s, 0
	}
	offset, err := strconv.ParseUint(tail, 0, 64)
	if err != nil {
		return s, 0
	}
	return name, offset
}

// named is for hooks whose one field is a name that the section gives.
func named(prog *ebpf.ProgramSpec, h volume.Hook, key, lacks, example string) said {
	if to := prog.AttachTo; to != "" {
		return says(prog, h, key+": "+to)
	}
	return need(prog, lacks, key+": "+example)
}

func says(prog *ebpf.ProgramSpec, h volume.Hook, example string) said {
	return said{hook: h, example: entry(prog, example)}
}

func need(prog *ebpf.ProgramSpec, what, example string) said {
	return said{lacks: what, example: entry(prog, example)}
}

// entry is one entry of the attribute attach. A part that comes from the object and is no plain word is left to the
// reader to quote; it is cut short to stay a message.
func entry(prog *ebpf.ProgramSpec, hook string) string {
	name := prog.Name
	if !isName(name) {
		name = quote(name)
	}
	return "{program: " + name + ", " + printable(hook) + "}"
}
