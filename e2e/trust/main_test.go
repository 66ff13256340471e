// SPDX-License-Identifier: Apache-2.0

// Package trust tests who may run what: one table of images and signatures, of every form that exists and of every kind
// that lies, each published over the CSI socket of the real `bpfvol serve` from a real registry. What is admitted counts
// a system call; what is refused has its code and its text of docs/events.md, and leaves nothing.
//
// The table runs twice: against go-containerregistry's registry in this process, and against Debian's docker-registry
// 2.8.2, which is from before the referrers API. Signatures are by cosign's library calls, and by cosign itself
// (verify/cosign/testdata).
//
// Elsewhere: credentials (internal/image), Kubernetes' RBAC (e2e/k8s), attributes and the node (e2e/events).
package trust

import (
	"testing"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }
