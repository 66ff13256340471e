// SPDX-License-Identifier: Apache-2.0

// Package hook attaches one program to one hook that the kernel itself shares among programs: all but xdp and tc, which
// are package dispatcher's.
//
//	links, err := hook.Attach(prog, &volume.Tracepoint{Group: "sched", Name: "sched_switch"})
//	for i, l := range links { l.Pin(...); l.Close() }
//
// One attachment is a list of links because a perf event that samples every CPU is, in the kernel, an event per CPU.
//
// Invariants:
//   - every link can be pinned, and a pinned link works on when the process that made it is killed; removing the pin
//     ends it (TestPinnedLinksOutliveTheirMaker, TestPinnedIteratorOutlivesItsMaker);
//   - all links or none: an error leaves nothing attached (TestAttachErrorsLeaveNothing);
//   - nothing is written to tracefs and none needs to be mounted: kernel functions are probed by events without a name,
//     and tracepoints found through a mount that only this process sees, for as long as it looks
//     (TestProbesLeaveNoNameInTracefs, TestTracepointNeedsNoMountedTracefs);
//   - what the kernel takes and never runs is refused (TestLSMProgramThatWouldNeverRunIsRefused);
//   - a cgroup path never leads out of the cgroup file system (TestCgroupPathStaysInside).
package hook

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Attach runs prog at a hook. The caller pins the links it wants to keep and closes all of them. The kernel takes up
// to 80 ms to end the last use of a tracepoint, a perf event or a probe; whoever closes the link waits for that, whoever
// removes the pin of a link that is not open does not.
//
// Hooks of the network are those of the calling thread's network namespace.
//
// A name that does not exist on this node is a *MissingError, what is no place for a program wraps ErrUnfit, a feature that
// the kernel or the machine lacks wraps ebpf.ErrNotSupported, and where the kernel has it but not for this process that is a
// *RefusedError.
func Attach(prog *ebpf.Program, h volume.Hook) (_ []link.Link, err error) {
	defer func() {
		if errors.Is(err, os.ErrPermission) && !errors.Is(err, ErrUnfit) {
			err = &RefusedError{h.Kind(), err}
		}
	}()
	switch h := h.(type) {
	case *volume.Tracepoint:
		return one(attachTracepoint(prog, h))
	case *volume.RawTracepoint:
		return one(attachRawTracepoint(prog, h))
	case *volume.Kprobe:
		return one(attachKprobe(prog, h))
	case *volume.Fentry:
		return one(attachFentry(prog, h))
	case *volume.Uprobe:
		return one(attachUprobe(prog, h))
	case *volume.LSM:
		return one(attachLSM(prog, h))
	case *volume.Cgroup:
		return one(attachCgroup(prog, h))
	case *volume.PerfEvent:
		return attachPerfEvent(prog, h)
	case *volume.Iter:
		return one(attachIter(prog, h))
	case *volume.Netfilter:
		return one(attachNetfilter(prog, h))
	case *volume.SKLookup:
		return one(attachSKLookup(prog))
	case *volume.Netkit:
		return attachNetkit(prog, h)
	}
	return nil, fmt.Errorf("%s: its programs share a point; package dispatcher attaches them", h.Kind())
}

func one(l link.Link, err error) ([]link.Link, error) {
	if err != nil {
		return nil, err
	}
	return []link.Link{l}, nil
}

// wantType refuses a program that the kernel would refuse with a bare EINVAL.
func wantType(prog *ebpf.Program, types ...ebpf.ProgramType) error {
	if slices.Contains(types, prog.Type()) {
		return nil
	}
	return fmt.Errorf("program is of type %s, the hook needs %s", prog.Type(), types[0])
}
