// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// loadAs is what the kernel must be told when it loads a program for a hook. A program is loaded once, so all its
// attachments must agree.
type loadAs struct {
	attach   ebpf.AttachType
	attachTo string
}

// fit says how to load prog for h, and returns h with what its section says filled in. A program of another type than
// the hook takes is ErrInvalid.
func fit(prog *ebpf.ProgramSpec, h volume.Hook) (volume.Hook, loadAs, error) {
	as := loadAs{}
	ok := false
	switch h := h.(type) {
	case *volume.XDP:
		// Programs for a devmap or cpumap are XDP, too, but see another context.
		ok = prog.Type == ebpf.XDP && (prog.AttachType == ebpf.AttachXDP || prog.AttachType == ebpf.AttachNone)
		as.attach = ebpf.AttachXDP
	case *volume.TC:
		// Without an attach type the program fits TCX and cls_bpf, ingress and egress.
		ok = prog.Type == ebpf.SchedCLS
	case *volume.Netkit:
		ok = prog.Type == ebpf.SchedCLS
		as.attach = ebpf.AttachNetkitPrimary
		if h.Peer {
			as.attach = ebpf.AttachNetkitPeer
		}
	case *volume.Tracepoint:
		ok = prog.Type == ebpf.TracePoint
	case *volume.RawTracepoint:
		switch {
		case prog.Type == ebpf.RawTracepoint || prog.Type == ebpf.RawTracepointWritable:
			ok = true
		case prog.Type == ebpf.Tracing && prog.AttachType == ebpf.AttachTraceRawTp:
			ok, as = true, loadAs{ebpf.AttachTraceRawTp, h.Name}
		}
	case *volume.Kprobe, *volume.Uprobe:
		// Sections such as uprobe.multi ask for a multi link; loaded plainly, the program fits a single one.
		ok = prog.Type == ebpf.Kprobe
	case *volume.Fentry:
		as = loadAs{ebpf.AttachTraceFEntry, h.Function}
		if h.Exit {
			as.attach = ebpf.AttachTraceFExit
		}
		ok = prog.Type == ebpf.Tracing && prog.AttachType == as.attach
	case *volume.LSM:
		as = loadAs{ebpf.AttachLSMMac, h.Name}
		ok = prog.Type == ebpf.LSM && prog.AttachType == as.attach
	case *volume.Cgroup:
		return fitCgroup(prog, h)
	case *volume.PerfEvent:
		ok = prog.Type == ebpf.PerfEvent
	case *volume.Iter:
		as = loadAs{ebpf.AttachTraceIter, h.Target}
		ok = prog.Type == ebpf.Tracing && prog.AttachType == as.attach
	case *volume.Netfilter:
		as.attach = ebpf.AttachNetfilter
		ok = prog.Type == ebpf.Netfilter
	case *volume.SKLookup:
		as.attach = ebpf.AttachSkLookup
		ok = prog.Type == ebpf.SkLookup
	}
	if !ok {
		return nil, as, mismatch(prog, string(h.Kind()))
	}
	return h, as, nil
}

// cgroupAttach is what Cgroup.Attach may say, as the sections of libbpf do after "cgroup/" (or "cgroup_").
var cgroupAttach = map[string]struct {
	Type   ebpf.ProgramType
	Attach ebpf.AttachType
}{
	"skb/ingress":      {ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress},
	"skb/egress":       {ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress},
	"sock_create":      {ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate},
	"sock_release":     {ebpf.CGroupSock, ebpf.AttachCgroupInetSockRelease},
	"post_bind4":       {ebpf.CGroupSock, ebpf.AttachCGroupInet4PostBind},
	"post_bind6":       {ebpf.CGroupSock, ebpf.AttachCGroupInet6PostBind},
	"bind4":            {ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Bind},
	"bind6":            {ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Bind},
	"connect4":         {ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect},
	"connect6":         {ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect},
	"connect_unix":     {ebpf.CGroupSockAddr, ebpf.AttachCgroupUnixConnect},
	"sendmsg4":         {ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Sendmsg},
	"sendmsg6":         {ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Sendmsg},
	"sendmsg_unix":     {ebpf.CGroupSockAddr, ebpf.AttachCgroupUnixSendmsg},
	"recvmsg4":         {ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Recvmsg},
	"recvmsg6":         {ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Recvmsg},
	"recvmsg_unix":     {ebpf.CGroupSockAddr, ebpf.AttachCgroupUnixRecvmsg},
	"getpeername4":     {ebpf.CGroupSockAddr, ebpf.AttachCgroupInet4GetPeername},
	"getpeername6":     {ebpf.CGroupSockAddr, ebpf.AttachCgroupInet6GetPeername},
	"getpeername_unix": {ebpf.CGroupSockAddr, ebpf.AttachCgroupUnixGetpeername},
	"getsockname4":     {ebpf.CGroupSockAddr, ebpf.AttachCgroupInet4GetSockname},
	"getsockname6":     {ebpf.CGroupSockAddr, ebpf.AttachCgroupInet6GetSockname},
	"getsockname_unix": {ebpf.CGroupSockAddr, ebpf.AttachCgroupUnixGetsockname},
	"sysctl":           {ebpf.CGroupSysctl, ebpf.AttachCGroupSysctl},
	"getsockopt":       {ebpf.CGroupSockopt, ebpf.AttachCGroupGetsockopt},
	"setsockopt":       {ebpf.CGroupSockopt, ebpf.AttachCGroupSetsockopt},
	"dev":              {ebpf.CGroupDevice, ebpf.AttachCGroupDevice},
	"sockops":          {ebpf.SockOps, ebpf.AttachCGroupSockOps},
}

func fitCgroup(prog *ebpf.ProgramSpec, h *volume.Cgroup) (volume.Hook, loadAs, error) {
	name := h.Attach
	if name == "" {
		name = cgroupBySection(prog)
	}
	if name == "" {
		if isCgroup(prog.Type) {
			return nil, loadAs{}, invalid("program %s: section %s does not say how it attaches to a cgroup; set cgroup.attach",
				quote(prog.Name), quote(prog.SectionName))
		}
		return nil, loadAs{}, mismatch(prog, "cgroup")
	}
	how, ok := cgroupAttach[name]
	if !ok {
		known := slices.Sorted(maps.Keys(cgroupAttach))
		return nil, loadAs{}, invalid("program %s: unknown cgroup.attach %s; known: %s", quote(prog.Name), quote(name), strings.Join(known, ", "))
	}
	if how.Type != prog.Type {
		return nil, loadAs{}, mismatch(prog, "cgroup "+name)
	}
	filled := *h
	filled.Attach = name
	return &filled, loadAs{attach: how.Attach}, nil
}

// cgroupBySection returns the name of cgroupAttach that prog's section says, or "".
func cgroupBySection(prog *ebpf.ProgramSpec) string {
	for name, how := range cgroupAttach {
		if how.Type == prog.Type && how.Attach == prog.AttachType {
			// Section "cgroup/skb" says AttachNone, which is the number of AttachCGroupInetIngress.
			if prog.Type == ebpf.CGroupSKB && !strings.HasSuffix(prog.SectionName, name) {
				continue
			}
			return name
		}
	}
	return ""
}

func isCgroup(t ebpf.ProgramType) bool {
	for _, how := range cgroupAttach {
		if how.Type == t {
			return true
		}
	}
	return false
}

func mismatch(prog *ebpf.ProgramSpec, hook string) error {
	fix := "attach another program there"
	if says := bySection(prog); says.example != "" {
		fix = "attach it as " + says.example
	}
	return invalid("program %s: hook %s does not take programs of section %s; %s", quote(prog.Name), hook, quote(prog.SectionName), fix)
}
