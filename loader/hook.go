// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/hook"
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
	attach, typ, err := hook.CgroupType(name)
	if err != nil {
		return nil, loadAs{}, invalid("program %s: %v", quote(prog.Name), err)
	}
	if typ != prog.Type {
		return nil, loadAs{}, mismatch(prog, "cgroup "+name)
	}
	filled := *h
	filled.Attach = name
	return &filled, loadAs{attach: attach}, nil
}

// cgroupBySection returns the attach type of cgroups that prog's section says, or "".
func cgroupBySection(prog *ebpf.ProgramSpec) string {
	for _, name := range volume.CgroupAttachTypes {
		attach, typ, err := hook.CgroupType(name)
		if err != nil || typ != prog.Type || attach != prog.AttachType {
			continue
		}
		// Section "cgroup/skb" says AttachNone, which is the number of AttachCGroupInetIngress.
		if prog.Type == ebpf.CGroupSKB && !strings.HasSuffix(prog.SectionName, name) {
			continue
		}
		return name
	}
	return ""
}

func isCgroup(t ebpf.ProgramType) bool {
	return slices.ContainsFunc(volume.CgroupAttachTypes, func(name string) bool {
		_, typ, err := hook.CgroupType(name)
		return err == nil && typ == t
	})
}

func mismatch(prog *ebpf.ProgramSpec, where string) error {
	fix := "attach another program there"
	if says := bySection(prog); says.example != "" {
		fix = "attach it as " + says.example
	}
	return invalid("program %s: hook %s does not take programs of section %s; %s", quote(prog.Name), where, quote(prog.SectionName), fix)
}
