// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"cmp"
	"slices"
	"strings"
)

// sortSlots puts components in the order in which libxdp would run them (cmp_xdp_programs in lib/libxdp/libxdp.c, for
// programs that are loaded): by priority, and ties by name, tag and load time. So the order depends on the set alone,
// and is the same whoever writes the dispatcher next.
func sortSlots(slots []*slot) {
	slices.SortStableFunc(slots, func(a, b *slot) int {
		return cmp.Or(
			cmp.Compare(a.Priority, b.Priority),
			strings.Compare(a.Name, b.Name),
			strings.Compare(a.tag, b.tag),
			cmp.Compare(a.loaded, b.loaded),
		)
	})
}
