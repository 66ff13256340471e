// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// The kernel's answer comes when the daemon starts, not with the first pod.
func TestVolumesShareByLibxdp(t *testing.T) {
	f := newFixture(t)
	f.opts.LibXDP = true
	if _, err := Open(f.opts); err != nil {
		if !errors.Is(err, ebpf.ErrNotSupported) {
			t.Fatal(err)
		}
		bpftest.SkipIfNotSupported(t, err)
	}
	f.restart(t)
	testSharing(t, f, dispatcher.LibXDP, dispatcher.LibXDP)
}
