// SPDX-License-Identifier: Apache-2.0

// Package hook attaches one program to one hook that the kernel itself shares among programs: tracepoints, raw
// tracepoints, probes in user space, cgroups and perf events. Hooks that hold one program are package dispatcher's.
//
//	links, err := hook.Attach(prog, &volume.Tracepoint{Group: "sched", Name: "sched_switch"})
//	for i, l := range links { l.Pin(...); l.Close() }
//
// One attachment is a list of links because a perf event that samples every CPU is, in the kernel, an event per CPU.
//
// Invariants:
//   - every link can be pinned, and a pinned link works on when the process that made it is killed; removing the pin
//     ends it (TestPinnedLinksOutliveTheirMaker);
//   - all links or none: an error leaves nothing attached (TestAttachErrorsLeaveNothing);
//   - nothing is written to tracefs and none needs to be mounted: events are found through a mount that only this
//     process sees, for as long as it looks (TestTracepointNeedsNoMountedTracefs);
//   - a cgroup path never leads out of the cgroup file system (TestCgroupPathStaysInside).
package hook

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// supported lists the hooks of Attach and of package dispatcher, in the order of volume.Kinds.
var supported = []volume.Kind{
	volume.KindXDP, volume.KindTC, volume.KindTracepoint, volume.KindRawTracepoint,
	volume.KindUprobe, volume.KindUretprobe, volume.KindCgroup, volume.KindPerfEvent,
}

// UnsupportedError says that this version knows a hook's attributes but cannot attach to it.
type UnsupportedError struct{ Kind volume.Kind }

func (e *UnsupportedError) Error() string {
	names := make([]string, len(supported))
	for i, k := range supported {
		names[i] = string(k)
	}
	return fmt.Sprintf("%s: not supported yet by this version; supported: %s", e.Kind, strings.Join(names, ", "))
}

// Supported returns nil for the hooks that this version attaches to, else an *UnsupportedError.
func Supported(k volume.Kind) error {
	if slices.Contains(supported, k) {
		return nil
	}
	return &UnsupportedError{Kind: k}
}

// Attach runs prog at a hook. The caller pins the links it wants to keep and closes all of them. The kernel takes up
// to 80 ms to end the last use of a tracepoint, a perf event or a probe; whoever closes the link waits for that, whoever
// removes the pin of a link that is not open does not.
//
// A name that does not exist on this node is a *MissingError, a feature that the kernel or the machine lacks wraps
// ebpf.ErrNotSupported.
func Attach(prog *ebpf.Program, h volume.Hook) ([]link.Link, error) {
	switch h := h.(type) {
	case *volume.Tracepoint:
		return one(attachTracepoint(prog, h))
	case *volume.RawTracepoint:
		return one(attachRawTracepoint(prog, h))
	case *volume.Uprobe:
		return one(attachUprobe(prog, h))
	case *volume.Cgroup:
		return one(attachCgroup(prog, h))
	case *volume.PerfEvent:
		return attachPerfEvent(prog, h)
	}
	return nil, &UnsupportedError{Kind: h.Kind()}
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
