// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"strings"
	"unicode"

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
			maps[m.Name] = snake(m.Type)
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

// snake turns "PerCPUArray" into "per_cpu_array".
func snake(s string) string {
	var b strings.Builder
	runes := []rune(s)
	for i, r := range runes {
		startsWord := unicode.IsUpper(r) && i > 0 &&
			(unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1]))
		if startsWord {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
