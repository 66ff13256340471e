// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/bpfvol/bpfvol/dispatcher/fuse"
	"github.com/bpfvol/bpfvol/verify"
)

// gplOnly are the helpers that only GPL-compatible programs may call: gpl_only of their bpf_func_proto, in Linux 6.1 to
// 6.18. A helper that is missing here is refused by the verifier instead.
var gplOnly = map[string]bool{
	"bpf_check_mtu":                    true,
	"bpf_copy_from_user_task":          true,
	"bpf_fib_lookup":                   true,
	"bpf_get_branch_snapshot":          true,
	"bpf_get_current_task":             true,
	"bpf_get_current_task_btf":         true,
	"bpf_get_func_ip":                  true,
	"bpf_get_stack":                    true,
	"bpf_override_return":              true,
	"bpf_perf_event_output":            true,
	"bpf_perf_event_read":              true,
	"bpf_perf_event_read_value":        true,
	"bpf_perf_prog_read_value":         true,
	"bpf_probe_read":                   true,
	"bpf_probe_read_kernel":            true,
	"bpf_probe_read_kernel_str":        true,
	"bpf_probe_read_str":               true,
	"bpf_probe_read_user":              true,
	"bpf_probe_read_user_str":          true,
	"bpf_probe_write_user":             true,
	"bpf_read_branch_records":          true,
	"bpf_seq_printf":                   true,
	"bpf_seq_printf_btf":               true,
	"bpf_seq_write":                    true,
	"bpf_skb_output":                   true,
	"bpf_snprintf":                     true,
	"bpf_task_pt_regs":                 true,
	"bpf_tcp_check_syncookie":          true,
	"bpf_tcp_gen_syncookie":            true,
	"bpf_tcp_raw_check_syncookie_ipv4": true,
	"bpf_tcp_raw_check_syncookie_ipv6": true,
	"bpf_tcp_raw_gen_syncookie_ipv4":   true,
	"bpf_tcp_raw_gen_syncookie_ipv6":   true,
	"bpf_timer_cancel":                 true,
	"bpf_timer_init":                   true,
	"bpf_timer_set_callback":           true,
	"bpf_timer_start":                  true,
	"bpf_trace_printk":                 true,
	"bpf_trace_vprintk":                true,
	"bpf_xdp_output":                   true,
}

// checkLicenses says before the kernel does, and more clearly, that a program calls what its license does not allow.
func checkLicenses(programs map[string]*ebpf.ProgramSpec) error {
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		prog := programs[name]
		if fuse.GPLCompatible(prog.License) {
			continue
		}
		if what := needsGPL(prog); what != "" {
			license := "license " + quote(prog.License) + " is not"
			if prog.License == "" {
				license = "it has no license"
			}
			return invalid("program %s: %s is for GPL-compatible programs and %s; for example: char LICENSE[] SEC(\"license\") = \"Dual BSD/GPL\"",
				quote(name), what, license)
		}
	}
	return nil
}

// needsGPL names the first thing in prog that only GPL-compatible programs may do, or "".
func needsGPL(prog *ebpf.ProgramSpec) string {
	if prog.Type == ebpf.LSM {
		return "hook lsm"
	}
	for i := range prog.Instructions {
		ins := &prog.Instructions[i]
		if ins.IsKfuncCall() {
			return "the kernel function " + printable(ins.Reference())
		}
		if !ins.IsBuiltinCall() {
			continue
		}
		name := verify.HelperName(asm.BuiltinFunc(ins.Constant))
		if gplOnly[name] || name == "bpf_get_stackid" && prog.Type != ebpf.PerfEvent {
			return "the helper " + name
		}
	}
	return ""
}
