// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"testing"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// inBothPlaces runs a test with the daemon on the node, and with it in a container.
func inBothPlaces(t *testing.T, node *bpftest.NetNS, test func(*testing.T, *nodetest.Node)) {
	t.Helper()
	for _, place := range []struct {
		name      string
		container bool
	}{{"on the node", false}, {"in a container", true}} {
		t.Run(place.name, func(t *testing.T) {
			test(t, nodetest.Start(t, nodetest.Options{NetNS: node, Container: place.container}))
		})
	}
}
