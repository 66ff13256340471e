// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"strings"
	"testing"
)

func BenchmarkParse(b *testing.B) {
	small := map[string]string{"image": "ghcr.io/acme/count:v1", "attach": attachExample, "maps": "flows, totals", "variables": "sample_rate: 100"}
	var list strings.Builder
	for i := range maxAttach {
		fmt.Fprintf(&list, "- {program: p%d, xdp: {interface: eth0, priority: %d, proceedOn: [pass, tx], mode: auto}}\n", i, i)
	}
	for name, attributes := range map[string]map[string]string{
		"three attachments": small,
		"as many as can be": {"image": "a:1", "attach": list.String()},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Parse(attributes); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
