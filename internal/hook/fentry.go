// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// mostAtFunction is how many programs run at one kernel function (BPF_MAX_TRAMP_LINKS, include/linux/bpf.h).
const mostAtFunction = 38

// attachFentry attaches to the function that the program was loaded for: CheckTarget is what finds that it is missing.
func attachFentry(prog *ebpf.Program, h *volume.Fentry) (link.Link, error) {
	if err := wantType(prog, ebpf.Tracing); err != nil {
		return nil, err
	}
	at := ebpf.AttachTraceFEntry
	if h.Exit {
		at = ebpf.AttachTraceFExit
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: prog, AttachType: at, Cookie: h.Cookie})
	if err != nil {
		return nil, explainTrampoline(err, "kernel function "+quote(h.Function))
	}
	return l, nil
}

// explainTrampoline puts in words why the kernel does not call a program from a function: it cannot, or something else
// has changed the function's first instruction, which is how the kernel does it (kernel/bpf/trampoline.c).
func explainTrampoline(err error, function string) error {
	switch {
	case errors.Is(err, unix.E2BIG):
		return full(function, mostAtFunction, "use another, or kprobe")
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL), errors.Is(err, ebpf.ErrNotSupported):
		return unfit("%s: the kernel cannot call programs from it; use another, or kprobe", function)
	}
	return fmt.Errorf("%s: %w", function, err)
}
