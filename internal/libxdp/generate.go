// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

const xdpPass = 2

// dispatcherName is the name of a dispatcher's entry function, by which libxdp knows it.
const dispatcherName = "xdp_dispatcher"

// slotName is the name of the function that component i replaces.
func slotName(i int) string { return fmt.Sprintf("prog%d", i) }

// target is the function that component i of n replaces. libxdp lets a component that is alone replace the entry
// (xdp_multiprog__link_prog), and so its verdict is the packet's, whatever its chain call actions. protocol.org does
// not say so; but if we did otherwise, what a lone component does would depend on who wrote the dispatcher.
func target(i, n int) string {
	if n == 1 {
		return dispatcherName
	}
	return slotName(i)
}

// generate makes a dispatcher with exactly as many slots as there are chain call actions:
//
//	int xdp_dispatcher(struct xdp_md *ctx)
//	{
//		int ret = prog0(ctx);
//		if (!(1 << ret & actions[0]))
//			return ret;
//		...
//		return XDP_PASS;
//	}
//
//	int prog0(struct xdp_md *ctx)
//	{
//		bpf_xdp_adjust_tail(ctx, 0);
//		return RETVAL;
//	}
//
// The slots change the packet by nothing because newer kernels let a program that changes packets only replace a
// function that does (Linux 6.13, "bpf: check changes_pkt_data property for extension programs", and stable releases).
func generate(name string, actions []uint32, flags uint32) *ebpf.ProgramSpec {
	insns := asm.Instructions{
		btf.WithFuncMetadata(asm.Mov.Reg(asm.R6, asm.R1).WithSymbol(name), xdpFunc(name)),
	}
	for i, mask := range actions {
		insns = append(insns,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Call.Label(slotName(i)),
			asm.Mov.Imm(asm.R1, 1),
			asm.LSh.Reg32(asm.R1, asm.R0),
			asm.And.Imm32(asm.R1, int32(mask|alwaysProceed)),
			asm.JEq.Imm(asm.R1, 0, "out"),
		)
	}
	insns = append(insns,
		asm.Mov.Imm(asm.R0, xdpPass),
		asm.Return().WithSymbol("out"),
	)
	for i := range actions {
		slot := slotName(i)
		insns = append(insns,
			btf.WithFuncMetadata(asm.Mov.Imm(asm.R2, 0).WithSymbol(slot), xdpFunc(slot)),
			asm.FnXdpAdjustTail.Call(),
			asm.Mov.Imm(asm.R0, retval),
			asm.Return(),
		)
	}
	return &ebpf.ProgramSpec{
		Name: name, Type: ebpf.XDP, License: "GPL", Instructions: insns, Flags: flags,
		// As libbpf loads it: a component remembers this of the first dispatcher it replaced a function of, and is
		// refused at one that differs.
		AttachType: ebpf.AttachXDP,
	}
}

// xdpFunc is the type of `int name(struct xdp_md *ctx)`, visible from outside: only such functions can replace and be
// replaced. The kernel looks at the name of the structure, not at what is in it.
func xdpFunc(name string) *btf.Func {
	return &btf.Func{Name: name, Linkage: btf.GlobalFunc, Type: &btf.FuncProto{
		Return: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
		Params: []btf.FuncParam{{Name: "ctx", Type: &btf.Pointer{Target: &btf.Struct{Name: "xdp_md"}}}},
	}}
}
