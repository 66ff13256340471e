// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

const (
	maxPriority     = 1000
	defaultPriority = 500
	maxInterfaces   = 64
	// defaultFrequency is what profilers use: near 100, and not in step with what runs every 10 ms.
	defaultFrequency = 99
	// defaultNetfilterPriority is behind iptables' filter table, which has 0: the kernel lets no two have the same.
	defaultNetfilterPriority = 1
	// defragPriority is where the kernel puts packets together (NF_IP_PRI_CONNTRACK_DEFRAG, NF_IP6_PRI_CONNTRACK_DEFRAG).
	defragPriority = -400
)

// newHook returns a hook of the kind with its defaults.
func newHook(kind Kind) Hook {
	switch kind {
	case KindXDP:
		return &XDP{Priority: defaultPriority, ProceedOn: []Verdict{"pass"}, Mode: XDPAuto}
	case KindTC:
		return &TC{Priority: defaultPriority, ProceedOn: []Verdict{"ok", "pipe"}}
	case KindTracepoint:
		return &Tracepoint{}
	case KindRawTracepoint:
		return &RawTracepoint{}
	case KindKprobe, KindKretprobe:
		return &Kprobe{Return: kind == KindKretprobe}
	case KindFentry, KindFexit:
		return &Fentry{Exit: kind == KindFexit}
	case KindUprobe, KindUretprobe:
		return &Uprobe{Return: kind == KindUretprobe}
	case KindLSM:
		return &LSM{}
	case KindCgroup:
		return &Cgroup{}
	case KindPerfEvent:
		return &PerfEvent{CPU: -1}
	case KindIter:
		return &Iter{}
	case KindNetfilter:
		return &Netfilter{Priority: defaultNetfilterPriority}
	case KindSKLookup:
		return &SKLookup{}
	case KindNetkit:
		return &Netkit{}
	}
	panic("volume: no hook " + string(kind))
}

func (h *XDP) shape() shape {
	return shape{doc: "the receive path of network interfaces, before the network stack", fields: []field{
		interfaceField(&h.Interfaces),
		priorityField(&h.Priority),
		proceedOnField(&h.ProceedOn, XDPVerdicts, ""),
		{key: "mode", value: choiceValue[XDPMode]{&h.Mode, []XDPMode{XDPAuto, XDPNative, XDPGeneric}},
			doc: "where the program runs: in the driver (`native`), after it (`generic`), or in the driver if that can do it (`auto`); all programs of an interface share one, and `auto` takes what is there"},
	}}.shortFirst()
}

func (h *TC) shape() shape {
	return shape{doc: "the traffic control layer of network interfaces (TCX, or clsact before Linux 6.6)", fields: []field{
		interfaceField(&h.Interfaces),
		{key: "direction", value: choiceValue[Direction]{&h.Direction, []Direction{Ingress, Egress}}, required: true, example: "ingress",
			doc: "which packets the program sees"},
		priorityField(&h.Priority),
		proceedOnField(&h.ProceedOn, TCVerdicts, "; after `unspec` it always does"),
	}}
}

func (h *Tracepoint) shape() shape {
	return shape{doc: "a tracepoint of the kernel", fields: []field{
		{key: "name", value: tracepointValue{&h.Group, &h.Name}, required: true, example: "syscalls/sys_enter_execve",
			doc: "tracepoint, as below `/sys/kernel/tracing/events`"},
		cookieField(&h.Cookie),
	}}.shortFirst()
}

func (h *RawTracepoint) shape() shape {
	return shape{doc: "a tracepoint of the kernel, with its raw arguments", fields: []field{
		{key: "name", value: textValue{&h.Name, checkEvent, "name"}, required: true, example: "sched_process_exec",
			doc: "tracepoint without its group, such as `sched_process_exec`"},
		cookieField(&h.Cookie),
	}}.shortFirst()
}

func (h *Kprobe) shape() shape {
	s := shape{doc: "the return of a kernel function", fields: []field{functionField(&h.Function, "kernel function; a system call by its name on every machine, such as `sys_execve`")}, example: "do_unlinkat"}
	if !h.Return {
		s.doc = "the entry of a kernel function, or an instruction in it"
		s.example = "do_unlinkat+0x10"
		s.fields = append(s.fields, field{key: "offset", value: countValue{to: &h.Offset},
			doc: "bytes into the function; it must be the start of an instruction"})
	}
	s.fields = append(s.fields, cookieField(&h.Cookie))
	s.short = func(text string) error {
		symbol, offset, err := cutOffset(text)
		if err == nil && (symbol == "" || h.Return) {
			symbol, offset = text, 0
		}
		if err != nil {
			return err
		}
		h.Function, h.Offset = symbol, offset
		return checkFunction(symbol)
	}
	return s
}

func (h *Fentry) shape() shape {
	s := shape{doc: "the entry of a kernel function, by BPF trampoline", fields: []field{functionField(&h.Function, "kernel function"), cookieField(&h.Cookie)}}
	if h.Exit {
		s.doc = "the return of a kernel function, by BPF trampoline"
	}
	return s.shortFirst()
}

func (h *Uprobe) shape() shape {
	s := shape{
		doc: "the entry of a function of a binary, or an instruction in it",
		fields: []field{
			{key: "path", value: textValue{&h.Path, checkBinary, "absolute path"}, required: true, example: "/usr/lib/libc.so.6",
				doc: "binary or shared library on the node"},
			{key: "symbol", value: textValue{&h.Symbol, checkSymbol, "symbol"}, example: "malloc", absent: "`offset` counts from the start of the file",
				doc: "function, as in the binary's symbol table"},
			{key: "offset", value: countValue{to: &h.Offset}, doc: "bytes from the symbol"},
			{key: "pid", value: intValue{&h.PID, 0, maxInt}, absent: "every process", doc: "process, in the node's numbering"},
			cookieField(&h.Cookie),
		},
		example: "/usr/lib/libc.so.6:malloc+0x10",
		short: func(text string) (err error) {
			colon := strings.LastIndex(text, ":")
			if colon < 0 {
				return fmt.Errorf("%s has no symbol; write path:symbol, like /usr/lib/libc.so.6:malloc", quote(text))
			}
			h.Path = text[:colon]
			h.Symbol, h.Offset, err = cutOffset(text[colon+1:])
			if err == nil {
				err = checkBinary(h.Path)
			}
			if err == nil && h.Symbol != "" {
				err = checkSymbol(h.Symbol)
			}
			return err
		},
		check: func() error {
			if h.Symbol == "" && h.Offset == 0 {
				return errors.New("symbol is missing; write symbol: name, or the offset of an instruction in the file")
			}
			return nil
		},
	}
	if h.Return {
		s.doc = "the return of a function of a binary"
	}
	return s
}

func (h *LSM) shape() shape {
	return shape{doc: "a hook of the kernel's security modules, which can refuse; the node's boot parameter `lsm=` must include `bpf`", fields: []field{
		{key: "name", value: textValue{&h.Name, checkEvent, "name"}, required: true, example: "file_open",
			doc: "hook of the kernel's security modules, such as `file_open`"},
		cookieField(&h.Cookie),
	}}.shortFirst()
}

func (h *Cgroup) shape() shape {
	return shape{doc: "what the processes of a control group (version 2) do", fields: []field{
		{key: "path", value: textValue{&h.Path, checkPath, "path"}, required: true, example: "kubepods.slice",
			doc: "cgroup, below the cgroup2 mount or absolute; the program sees what runs in it and below it"},
		{key: "attach", value: choiceValue[string]{&h.Attach, CgroupAttachTypes}, absent: "as the ELF section says",
			doc: "what the program is called for"},
	}}.shortFirst()
}

func (h *PerfEvent) shape() shape {
	return shape{
		doc: "samples of a performance event",
		fields: []field{
			{key: "event", value: textValue{&h.Event, checkEvent, "name"}, required: true, example: "cpu-clock",
				doc: "software or hardware event, as `perf list` names it: `cpu-clock`, `page-faults`, `cpu-cycles`, `cache-misses`, ..."},
			{key: "frequency", value: countValue{&h.Frequency, 1}, absent: strconv.Itoa(defaultFrequency) + ", where there is no `period`",
				doc: "samples per second"},
			{key: "period", value: countValue{&h.Period, 1}, absent: "`frequency` rules", doc: "one sample every so many events"},
			{key: "pid", value: intValue{&h.PID, 0, maxInt}, absent: "every process", doc: "process, in the node's numbering"},
			{key: "cpu", value: intValue{&h.CPU, -1, maxInt}, absent: "every CPU", doc: "CPU; -1 is every CPU"},
			cookieField(&h.Cookie),
		},
		check: func() error {
			if h.Frequency != 0 && h.Period != 0 {
				return errors.New("has both frequency and period; write one")
			}
			if h.Frequency == 0 && h.Period == 0 {
				h.Frequency = defaultFrequency
			}
			return nil
		},
	}.shortFirst()
}

func (h *Iter) shape() shape {
	return shape{doc: "a walk over kernel objects: reading the file `iter/<program>` of the volume runs it and gives what it prints", fields: []field{
		{key: "target", value: textValue{&h.Target, checkIterator, "name"}, required: true, example: "task",
			doc: "what the program walks over, such as `task`, `tcp` or `cgroup`; tasks and sockets are those of the reader's own PID and network namespace"},
	}}.shortFirst()
}

func (h *Netfilter) shape() shape {
	return shape{doc: "a netfilter hook of the node's network namespace, from Linux 6.4 on", check: h.check, fields: []field{
		{key: "family", value: choiceValue[string]{&h.Family, []string{"ipv4", "ipv6"}}, required: true, example: "ipv4", doc: "protocol"},
		{key: "hook", value: choiceValue[string]{&h.Hook, []string{"preRouting", "localIn", "forward", "localOut", "postRouting"}}, required: true, example: "localIn",
			doc: "place in the network stack"},
		// The ends are the kernel's own (net/netfilter/nf_bpf_link.c).
		{key: "priority", value: intValue{&h.Priority, math.MinInt32 + 1, math.MaxInt32 - 1},
			doc: "place among what else is on the hook, which no two can share; lower runs first, 0 is that of iptables' filter table"},
		{key: "defrag", value: boolValue{&h.Defrag}, doc: "see packets whole, not in fragments"},
	}}
}

func (h *Netfilter) check() error {
	if h.Defrag && h.Priority <= defragPriority {
		return fmt.Errorf("packets are put together at priority %d, so defrag needs a higher one than %d", defragPriority, h.Priority)
	}
	return nil
}

func (h *SKLookup) shape() shape {
	return shape{doc: "the choice of the socket that receives a packet, in the node's network namespace"}
}

func (h *Netkit) shape() shape {
	return shape{doc: "netkit network devices, from Linux 6.7 on", fields: []field{
		interfaceField(&h.Interfaces),
		{key: "peer", value: boolValue{&h.Peer}, doc: "attach to the peer, the device in the container"},
	}}.shortFirst()
}

func interfaceField(to *[]string) field {
	return field{key: "interface", value: interfacesValue{to}, required: true, example: "eth0",
		doc: "network interface of the node; `" + DefaultRoute + "` is the one that its default route uses"}
}

func priorityField(to *int) field {
	return field{key: "priority", value: intValue{to, 0, maxPriority}, doc: "place among the programs that share the point, of all volumes; lower runs first"}
}

func proceedOnField(to *[]Verdict, codes map[Verdict]int, more string) field {
	return field{key: "proceedOn", value: verdictsValue{to, codes},
		doc: "results after which the next program runs" + more + "; any other ends the chain, and is the result"}
}

func functionField(to *string, doc string) field {
	return field{key: "function", value: textValue{to, checkFunction, "name"}, required: true, example: "do_unlinkat", doc: doc}
}

func cookieField(to *uint64) field {
	return field{key: "cookie", value: countValue{to: to}, doc: "number that the program gets from `bpf_get_attach_cookie`"}
}

// cutOffset splits "symbol+0x10". A number alone is an offset, too.
func cutOffset(s string) (symbol string, offset uint64, err error) {
	if offset, ok := parseOffset(s); ok {
		return "", offset, nil
	}
	plus := strings.LastIndex(s, "+")
	if plus < 0 {
		return s, 0, nil
	}
	offset, ok := parseOffset(s[plus+1:])
	if !ok {
		return "", 0, fmt.Errorf("%s is not an offset; write a number, like +0x10", quote(s[plus:]))
	}
	return s[:plus], offset, nil
}

// parseOffset reads decimal and hexadecimal numbers.
func parseOffset(s string) (uint64, bool) {
	digits, base := s, 10
	if hex, ok := strings.CutPrefix(s, "0x"); ok {
		digits, base = hex, 16
	}
	offset, err := strconv.ParseUint(digits, base, 64)
	return offset, err == nil
}
