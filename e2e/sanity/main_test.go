// SPDX-License-Identifier: Apache-2.0

// Package sanity_test runs csi-sanity, the conformance suite of the Container Storage Interface, against the real `bpfvol
// serve`: with signed images from a registry, and programs that run in the kernel. It is a module of its own, as what the
// suite depends on is not what bpfvol does; `make sanity` runs it.
//
// The suite calls the driver as an orchestrator does, but it is not Kubernetes: it does not say who the pod is. That is
// kubelet's part, which kubelet plays here (kubelet_test.go). Nothing else stands between.
package sanity_test

import (
	"os"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

// The suite's specs are global and run once a process, so each run is a process of its own, which the tests start.
func TestMain(m *testing.M) {
	if config := os.Getenv(suiteVariable); config != "" {
		os.Exit(runSuite(config))
	}
	nodetest.Main(m)
}
