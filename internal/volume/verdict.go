// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"cmp"
	"slices"
)

// Verdict is a program's result by name, lower camel case: "pass", "drop", "ok", "pipe", "unspec".
type Verdict string

// XDPVerdicts are the results of XDP programs (include/uapi/linux/bpf.h, enum xdp_action). DispatcherReturn is libxdp's
// for "no program ran here" (xdp-tools, lib/libxdp/protocol.org).
var XDPVerdicts = map[Verdict]int{
	"aborted": 0, "drop": 1, "pass": 2, "tx": 3, "redirect": 4, "dispatcherReturn": 31,
}

// TCVerdicts are the results of TC programs (include/uapi/linux/pkt_cls.h, TC_ACT_*). DispatcherReturn is bpfman's for
// "no program ran here".
var TCVerdicts = map[Verdict]int{
	"unspec": -1, "ok": 0, "reclassify": 1, "shot": 2, "pipe": 3, "stolen": 4, "queued": 5, "repeat": 6, "redirect": 7,
	"trap": 8, "dispatcherReturn": 30,
}

// byCode orders verdicts by the numbers that the kernel knows them by.
func byCode(codes map[Verdict]int) func(a, b Verdict) int {
	return func(a, b Verdict) int { return cmp.Compare(codes[a], codes[b]) }
}

func verdictNames(codes map[Verdict]int) []string {
	var all []Verdict
	for v := range codes {
		all = append(all, v)
	}
	slices.SortFunc(all, byCode(codes))
	return words(all)
}

func words[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = string(v)
	}
	return out
}
