// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// checksOf are the checks of a hook, of which one must be good; those that are not listed have the hook's name.
var checksOf = map[volume.Kind][]string{
	volume.KindTC:        {"tcx", "cls_bpf"},
	volume.KindKretprobe: {"kprobe"},
	volume.KindFexit:     {"fentry"},
	volume.KindUretprobe: {"uprobe"},
}

// RunHooks asks of each hook whether programs can attach to it here. The checks have the hooks' names and order.
func RunHooks(ctx context.Context, hooks []volume.Kind) []Check {
	p := thisProcess()
	byName := map[string]probe{}
	for _, pr := range probes(p) {
		byName[pr.name] = pr
	}
	var checks []Check
	for _, hook := range hooks {
		names := checksOf[hook]
		if names == nil {
			names = []string{string(hook)}
		}
		var c Check
		for _, name := range names {
			if c = byName[name].run(ctx, p, patience); c.OK {
				break
			}
		}
		c.Name = string(hook)
		checks = append(checks, c)
	}
	return checks
}
