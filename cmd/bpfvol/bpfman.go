// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"strings"

	"github.com/bpfvol/bpfvol/loader"
)

// bpfmanLabels are the labels that bpfman reads from an image: JSON objects of program name to type and of map name to
// type (bpfman, docs/developer-guide/shipping-bytecode.md).
func bpfmanLabels(s *loader.Summary) (map[string]string, error) {
	programs, maps := map[string]string{}, map[string]string{}
	for _, p := range s.Programs {
		kind, _, _ := strings.Cut(p.Section, "/")
		if kind == "classifier" {
			kind = "tc"
		}
		programs[p.Name] = kind
	}
	for _, m := range s.Maps {
		if !m.Data {
			maps[m.Name] = strings.Replace(m.Type, "percpu", "per_cpu", 1) // bpfman writes it so
		}
	}
	labels := map[string]string{}
	for key, value := range map[string]map[string]string{"io.ebpf.programs": programs, "io.ebpf.maps": maps} {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		labels[key] = string(text)
	}
	return labels, nil
}
