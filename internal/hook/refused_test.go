// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// The kernel says no to a thread without capabilities, as it does to all where its policy is strict.
func TestRefusalSaysThatItIsOne(t *testing.T) {
	bpftest.Root(t)
	prog, _ := counter(t, ebpf.Kprobe, 0)
	probe := &volume.Uprobe{Path: libc(t), Symbol: "malloc"}
	answers := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err := unix.Capset(&header, &make([]unix.CapUserData, 2)[0]); err != nil {
			answers <- err
			return
		}
		_, err := Attach(prog, probe)
		answers <- err
	}()
	err := <-answers
	want := "this kernel does not let bpfvol attach programs to hook uprobe: permission denied; see bpfvol doctor"
	if !errors.Is(err, unix.EACCES) || !errors.Is(err, ebpf.ErrNotSupported) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
