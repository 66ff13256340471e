// SPDX-License-Identifier: Apache-2.0

package members

import "github.com/cilium/ebpf"

// All returns every member; of the twins, TwinA's. Only conntrack needs more than a kernel: the module nf_conntrack, unless
// that is built in.
func All() []Member {
	var all []Member
	for _, of := range []struct {
		typ    ebpf.ProgramType
		object func() []byte
	}{{ebpf.XDP, XDP}, {ebpf.SchedCLS, TC}} {
		for _, program := range []string{
			// calls.h
			"subprograms", "global_functions", "loop", "each", "timer", "tail_target", "tail_call", "tail_call_function",
			// kernel.h
			"kconfig", "ksym", "core", "weak", "conntrack",
			// flow.h
			"costly", "back_to_start",
			// memory.h
			"counter", "globals", "spin_lock", "full_stack", "snug_stack", "deep_stack", "snug_deep_stack",
			// Each hook's own.
			"redirect",
		} {
			all = append(all, Member{Program: program, Type: of.typ, Object: of.object})
		}
		all = append(all,
			Member{Program: "kernel_ctx", Type: of.typ, Object: of.object, Since: "6.2", Feature: "bpf_cast_to_kern_ctx"},
			Member{Program: "iterator", Type: of.typ, Object: of.object, Since: "6.4", Feature: "bpf_iter_num_new"},
			Member{Program: "dynptr", Type: of.typ, Object: of.object, Since: "6.4", Feature: "dynptrs of packets"},
			Member{Program: "long_jump", Type: of.typ, Object: of.object, Since: "6.6", Feature: "gotol"},
			Member{Program: "exception", Type: of.typ, Object: of.object, Since: "6.7", Feature: "bpf_throw"},
		)
	}
	for _, program := range []string{"adjust_head", "adjust_tail", "meta_write", "meta_read", "reflect", "redirect_map", "frags"} {
		all = append(all, Member{Program: program, Type: ebpf.XDP, Object: XDP})
	}
	for _, program := range []string{
		"packet_write", "ctx_write", "change_tail", "vlan_push", "legacy_load", "legacy_load_function", "tcx",
	} {
		all = append(all, Member{Program: program, Type: ebpf.SchedCLS, Object: TC})
	}
	return append(all,
		Member{Program: "long_body", Type: ebpf.XDP, Object: Long},
		Member{Program: "functions_a", Type: ebpf.XDP, Object: Functions},
		Member{Program: "functions_b", Type: ebpf.XDP, Object: Functions},
		Member{Program: "functions_c", Type: ebpf.XDP, Object: Functions},
		Member{Program: "maps_a", Type: ebpf.XDP, Object: Maps},
		Member{Program: "maps_b", Type: ebpf.XDP, Object: Maps},
		Member{Program: "maps_c", Type: ebpf.XDP, Object: Maps},
		Member{Program: "maps_d", Type: ebpf.XDP, Object: Maps},
		Member{Program: "nobtf", Type: ebpf.XDP, Object: NoBTF},
		Member{Program: "nobtf_tc", Type: ebpf.SchedCLS, Object: NoBTF},
		Member{Program: "proprietary", Type: ebpf.XDP, Object: Proprietary},
		Member{Program: "proprietary_tc", Type: ebpf.SchedCLS, Object: Proprietary},
		Member{Program: "twin", Type: ebpf.XDP, Object: TwinA},
		Member{Program: "twin_tc", Type: ebpf.SchedCLS, Object: TwinA},
	)
}
