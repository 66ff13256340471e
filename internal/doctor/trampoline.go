// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// trampolineProbes ask for what the kernel does by rewriting the first instructions of a function.
func trampolineProbes(p process) []probe {
	caps := []capability{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}
	return []probe{
		{name: "fentry", what: "hooks fentry and fexit", caps: caps, kernel: "CONFIG_DEBUG_INFO_BTF and CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS", try: tryFentry},
		{name: "freplace", what: "hook xdp beside programs of xdp-loader (libxdp); bpfvol's own members do without", caps: caps, kernel: "CONFIG_DEBUG_INFO_BTF, version 5.10 or later", try: tryFreplace},
		{name: "lsm", what: "hook lsm", caps: caps, kernel: "CONFIG_BPF_LSM", try: p.tryLSM},
	}
}

// tryFentry attaches to a function that the kernel has for this purpose (net/bpf/test_run.c) and nothing calls.
func tryFentry() (string, error) {
	at := &volume.Fentry{Function: "bpf_fentry_test1"}
	spec := returning(0, ebpf.Tracing, ebpf.AttachTraceFEntry)
	spec.AttachTo = at.Function
	return at.String(), atHook(spec, at)
}

// tryFreplace replaces a function of a program that nothing runs.
func tryFreplace() (string, error) {
	const slot = "slot"
	target := returning(xdpPass, ebpf.XDP, ebpf.AttachXDP)
	target.Instructions = asm.Instructions{
		btf.WithFuncMetadata(asm.Call.Label(slot).WithSymbol("main"), xdpFunc("main")),
		asm.Return(),
		btf.WithFuncMetadata(asm.Mov.Imm(asm.R0, xdpPass).WithSymbol(slot), xdpFunc(slot)),
		asm.Return(),
	}
	err := with(target, func(target *ebpf.Program) error {
		member := returning(xdpPass, ebpf.Extension, ebpf.AttachNone)
		member.AttachTarget, member.AttachTo = target, slot
		member.Instructions[0] = btf.WithFuncMetadata(member.Instructions[0].WithSymbol("member"), xdpFunc("member"))
		return with(member, func(member *ebpf.Program) error {
			return attached(link.AttachFreplace(nil, "", member))
		})
	})
	return "a function of an XDP program", err
}

// xdpFunc is the type of `int name(struct xdp_md *ctx)`, visible from outside.
func xdpFunc(name string) *btf.Func {
	return &btf.Func{Name: name, Linkage: btf.GlobalFunc, Type: &btf.FuncProto{
		Return: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
		Params: []btf.FuncParam{{Name: "ctx", Type: &btf.Pointer{Target: &btf.Struct{Name: "xdp_md"}}}},
	}}
}

// tryLSM loads only: to attach would put a program in the way of the whole machine.
func (p process) tryLSM() (string, error) {
	spec := returning(0, ebpf.LSM, ebpf.AttachLSMMac)
	spec.AttachTo = "file_open"
	if err := with(spec, loads); err != nil {
		return "", err
	}
	if len(p.modules) > 0 && !slices.Contains(p.modules, "bpf") {
		return "", &problem{fmt.Sprintf("programs load, but never run: bpf is not among the active security modules %v", p.modules),
			"boot the node with bpf added to lsm="}
	}
	return "loads; not attached, since it would be for the whole machine", nil
}
