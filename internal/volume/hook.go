// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"slices"
	"strconv"
	"strings"
)

// Kind names a hook: the key under which an attachment is written.
type Kind string

const (
	KindXDP           Kind = "xdp"
	KindTC            Kind = "tc"
	KindTracepoint    Kind = "tracepoint"
	KindRawTracepoint Kind = "rawTracepoint"
	KindKprobe        Kind = "kprobe"
	KindKretprobe     Kind = "kretprobe"
	KindFentry        Kind = "fentry"
	KindFexit         Kind = "fexit"
	KindUprobe        Kind = "uprobe"
	KindUretprobe     Kind = "uretprobe"
	KindLSM           Kind = "lsm"
	KindCgroup        Kind = "cgroup"
	KindPerfEvent     Kind = "perfEvent"
	KindIter          Kind = "iter"
	KindNetfilter     Kind = "netfilter"
	KindSKLookup      Kind = "skLookup"
	KindNetkit        Kind = "netkit"
)

// Kinds lists every hook of the interface in the order the documentation shows them.
var Kinds = []Kind{
	KindXDP, KindTC, KindTracepoint, KindRawTracepoint, KindKprobe, KindKretprobe, KindFentry, KindFexit,
	KindUprobe, KindUretprobe, KindLSM, KindCgroup, KindPerfEvent, KindIter, KindNetfilter, KindSKLookup, KindNetkit,
}

// Hook is where a program attaches. The set is closed: one struct per Kind, always held by pointer.
type Hook interface {
	Kind() Kind
	// String is the point in words, as in volume.json and messages: "xdp eth0", "tracepoint syscalls/sys_enter_execve".
	String() string
	// shape binds the hook's fields to how they are written; it also closes the set.
	shape() shape
}

// XDP attaches to the receive path of one or more interfaces.
type XDP struct {
	Interfaces []string
	Priority   int       // 0-1000, lower runs first
	ProceedOn  []Verdict // verdicts that let later members run
	Mode       XDPMode
}

// XDPMode says where in the driver the program runs.
type XDPMode string

const (
	XDPAuto    XDPMode = "auto" // native, else generic
	XDPNative  XDPMode = "native"
	XDPGeneric XDPMode = "generic"
)

// TC attaches to the traffic control layer of one or more interfaces.
type TC struct {
	Interfaces []string
	Direction  Direction
	Priority   int
	ProceedOn  []Verdict
}

// Direction is which way packets pass a TC hook.
type Direction string

const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Tracepoint attaches to a stable kernel tracepoint.
type Tracepoint struct {
	Group, Name string
	Cookie      uint64
}

// RawTracepoint attaches to a tracepoint's raw arguments.
type RawTracepoint struct {
	Name   string
	Cookie uint64
}

// Kprobe attaches to the entry (or, with Return, the return) of a kernel function.
type Kprobe struct {
	Function string
	Offset   uint64 // bytes into the function; entry probes only
	Cookie   uint64
	Return   bool // kretprobe
}

// Fentry attaches to the entry (or, with Exit, the exit) of a kernel function by BPF trampoline.
type Fentry struct {
	Function string
	Cookie   uint64
	Exit     bool // fexit
}

// Uprobe attaches to the entry (or, with Return, the return) of a function of a binary.
type Uprobe struct {
	Path   string // absolute, on the node
	Symbol string // empty: Offset is from the start of the file
	Offset uint64 // bytes from Symbol
	PID    int    // 0: every process
	Cookie uint64
	Return bool // uretprobe
}

// LSM attaches to a Linux security module hook.
type LSM struct {
	Name   string
	Cookie uint64
}

// Cgroup attaches to a cgroup v2 and what runs below it.
type Cgroup struct {
	Path string // below the cgroup2 mount, or absolute
	// Attach is the kernel's attach type as in ELF section names, such as "connect4" or "skb/egress".
	// Empty: as the section says.
	Attach string
}

// PerfEvent runs the program at each sample of a software or hardware event.
type PerfEvent struct {
	Event     string // "cpu-clock", "cpu-cycles", ... see docs/attributes.md
	Frequency uint64 // samples per second; exclusive with Period
	Period    uint64 // one sample every so many events
	PID       int    // 0: every process
	CPU       int    // -1: every CPU
	Cookie    uint64
}

// Iter runs the program over kernel objects whenever somebody reads its file of the volume.
type Iter struct{ Target string }

// Netfilter attaches to a netfilter hook of the node's network namespace.
type Netfilter struct {
	Family   string // "ipv4", "ipv6"
	Hook     string // "preRouting", "localIn", "forward", "localOut", "postRouting"
	Priority int    // lower runs first; no two may have the same
	Defrag   bool
}

// SKLookup decides which socket of the node's network namespace receives a packet.
type SKLookup struct{}

// Netkit attaches to a netkit device.
type Netkit struct {
	Interfaces []string
	Peer       bool
}

func (*XDP) Kind() Kind           { return KindXDP }
func (*TC) Kind() Kind            { return KindTC }
func (*Tracepoint) Kind() Kind    { return KindTracepoint }
func (*RawTracepoint) Kind() Kind { return KindRawTracepoint }
func (h *Kprobe) Kind() Kind      { return pick(h.Return, KindKretprobe, KindKprobe) }
func (h *Fentry) Kind() Kind      { return pick(h.Exit, KindFexit, KindFentry) }
func (h *Uprobe) Kind() Kind      { return pick(h.Return, KindUretprobe, KindUprobe) }
func (*LSM) Kind() Kind           { return KindLSM }
func (*Cgroup) Kind() Kind        { return KindCgroup }
func (*PerfEvent) Kind() Kind     { return KindPerfEvent }
func (*Iter) Kind() Kind          { return KindIter }
func (*Netfilter) Kind() Kind     { return KindNetfilter }
func (*SKLookup) Kind() Kind      { return KindSKLookup }
func (*Netkit) Kind() Kind        { return KindNetkit }

func pick(cond bool, yes, no Kind) Kind {
	if cond {
		return yes
	}
	return no
}

// Interfaces returns the interfaces a hook names; nil for hooks that have none.
func Interfaces(h Hook) []string {
	switch h := h.(type) {
	case *XDP:
		return slices.Clone(h.Interfaces)
	case *TC:
		return slices.Clone(h.Interfaces)
	case *Netkit:
		return slices.Clone(h.Interfaces)
	}
	return nil
}

func (h *XDP) String() string { return "xdp " + strings.Join(h.Interfaces, ",") }
func (h *TC) String() string {
	return "tc " + strings.Join(h.Interfaces, ",") + " " + string(h.Direction)
}
func (h *Tracepoint) String() string    { return "tracepoint " + h.Group + "/" + h.Name }
func (h *RawTracepoint) String() string { return "rawTracepoint " + h.Name }
func (h *Kprobe) String() string        { return string(h.Kind()) + " " + h.Function + offset(h.Offset) }
func (h *Fentry) String() string        { return string(h.Kind()) + " " + h.Function }
func (h *Uprobe) String() string {
	return string(h.Kind()) + " " + h.Path + ":" + h.Symbol + offset(h.Offset)
}
func (h *LSM) String() string       { return "lsm " + h.Name }
func (h *Cgroup) String() string    { return strings.TrimSpace("cgroup " + h.Path + " " + h.Attach) }
func (h *PerfEvent) String() string { return "perfEvent " + h.Event }
func (h *Iter) String() string      { return "iter " + h.Target }
func (h *Netfilter) String() string { return "netfilter " + h.Family + " " + h.Hook }
func (h *SKLookup) String() string  { return "skLookup" }
func (h *Netkit) String() string {
	s := "netkit " + strings.Join(h.Interfaces, ",")
	if h.Peer {
		s += " peer"
	}
	return s
}

func offset(o uint64) string {
	if o == 0 {
		return ""
	}
	return "+0x" + strconv.FormatUint(o, 16)
}
