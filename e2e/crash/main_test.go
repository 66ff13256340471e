// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"testing"

	"github.com/bpfvol/bpfvol/e2e/crash/inject"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

func TestMain(m *testing.M) {
	inject.Main()
	nodetest.Main(m)
}
