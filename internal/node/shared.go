// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"

	"github.com/bpfvol/bpfvol/internal/host"
)

// sharedWithHost refuses a directory that is another one for the node. What the node plugin keeps in its container alone
// goes with it: the next one would take running volumes for leftovers, or miss them.
func sharedWithHost(h host.Process, dir string) error {
	here, err := os.Stat(dir)
	notShared := fmt.Errorf("%s: not the node's directory; mount that at the same path in the container, by hostPath and mountPropagation HostToContainer", dir)
	if err != nil {
		return notShared
	}
	return h.Do(func() error {
		if there, err := os.Stat(dir); err != nil || !os.SameFile(here, there) {
			return notShared
		}
		return nil
	})
}
