// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

func attachTracepoint(prog *ebpf.Program, h *volume.Tracepoint) (link.Link, error) {
	if err := wantType(prog, ebpf.TracePoint); err != nil {
		return nil, err
	}
	id, err := tracepointID(h.Group, h.Name)
	if err != nil {
		return nil, err
	}
	// A program at a trace event runs on every CPU, whichever CPU the perf event is opened for.
	event, err := perfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Sample: 1, Wakeup: 1}, everyProcess, 0)
	if err != nil {
		return nil, fmt.Errorf("tracepoint %s: %w", quote(h.Group+"/"+h.Name), err)
	}
	defer unix.Close(event)
	l, err := linkPerfEvent(prog, event, h.Cookie)
	if errors.Is(err, unix.E2BIG) { // BPF_TRACE_MAX_PROGS, kernel/trace/bpf_trace.c
		return nil, full("tracepoint "+quote(h.Group+"/"+h.Name), 64, "use another tracepoint or rawTracepoint")
	}
	return l, err
}

// tracepointID asks tracefs for the number of an event.
func tracepointID(group, name string) (uint64, error) {
	fs, err := openDetached("tracefs")
	if err != nil {
		return 0, err
	}
	defer fs.Close()
	missing := func() error {
		if names := fs.list("events/" + group); isName(group) && len(names) > 0 {
			return &MissingError{What: "tracepoint", Name: group + "/" + name, Where: "its group has", Known: prefixed(group+"/", names)}
		}
		return &MissingError{What: "tracepoint group", Name: group, Where: "groups are", Known: fs.list("events")}
	}
	if !isName(group) || !isName(name) {
		return 0, missing()
	}
	text, err := fs.read("events/" + group + "/" + name + "/id")
	if notThere(err) {
		return 0, missing()
	} else if err != nil {
		return 0, fmt.Errorf("tracepoint %s: %w", quote(group+"/"+name), err)
	}
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("tracepoint %s: id %s: %w", quote(group+"/"+name), quote(text), err)
	}
	return id, nil
}

// isName reports whether s is one element of a path.
func isName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

func prefixed(prefix string, names []string) []string {
	for i, name := range names {
		names[i] = prefix + name
	}
	return names
}

func attachRawTracepoint(prog *ebpf.Program, h *volume.RawTracepoint) (link.Link, error) {
	if err := wantType(prog, ebpf.RawTracepoint, ebpf.RawTracepointWritable, ebpf.Tracing); err != nil {
		return nil, err
	}
	name := h.Name
	if prog.Type() == ebpf.Tracing {
		name = "" // it was loaded for this tracepoint (tp_btf) and is for no other
	}
	l, err := linkRawTracepoint(prog, name, h.Cookie)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) && !isName(h.Name) {
		return nil, &MissingError{What: "raw tracepoint", Name: h.Name, Where: "there are", Known: rawTracepoints()}
	} else if err != nil {
		return nil, fmt.Errorf("raw tracepoint %s: %w", quote(h.Name), err)
	}
	return l, nil
}

// rawTracepoints lists the names of the kernel's tracepoints, as far as their trace events bear the same ones: all
// but few do. Events of the group "syscalls" have no tracepoint of their own.
func rawTracepoints() []string {
	fs, err := openDetached("tracefs")
	if err != nil {
		return nil
	}
	defer fs.Close()
	text, err := fs.read("available_events")
	if err != nil {
		return nil
	}
	var names []string
	for line := range strings.Lines(text) {
		if group, name, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && group != "syscalls" {
			names = append(names, name)
		}
	}
	return names
}
