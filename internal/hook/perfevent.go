// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

const (
	everyProcess = -1
	everyCPU     = -1

	// inheritThread limits inheritance to threads (struct perf_event_attr, inherit_thread, Linux 5.13).
	inheritThread = unix.CBitFieldMaskBit35
)

// event is a software or hardware event in the terms of perf_event_open(2).
type event struct {
	kind   uint32
	config uint64
}

// events holds the names that perf(1) gives them.
var events = map[string]event{
	"cpu-clock":        {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CPU_CLOCK},
	"task-clock":       {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_TASK_CLOCK},
	"page-faults":      {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_PAGE_FAULTS},
	"faults":           {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_PAGE_FAULTS},
	"minor-faults":     {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_PAGE_FAULTS_MIN},
	"major-faults":     {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_PAGE_FAULTS_MAJ},
	"context-switches": {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CONTEXT_SWITCHES},
	"cs":               {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CONTEXT_SWITCHES},
	"cpu-migrations":   {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CPU_MIGRATIONS},
	"migrations":       {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CPU_MIGRATIONS},
	"alignment-faults": {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_ALIGNMENT_FAULTS},
	"emulation-faults": {unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_EMULATION_FAULTS},
	"cgroup-switches":  {unix.PERF_TYPE_SOFTWARE, 11}, // PERF_COUNT_SW_CGROUP_SWITCHES

	"cpu-cycles":              {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CPU_CYCLES},
	"cycles":                  {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CPU_CYCLES},
	"instructions":            {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_INSTRUCTIONS},
	"cache-references":        {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CACHE_REFERENCES},
	"cache-misses":            {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CACHE_MISSES},
	"branch-instructions":     {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_BRANCH_INSTRUCTIONS},
	"branches":                {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_BRANCH_INSTRUCTIONS},
	"branch-misses":           {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_BRANCH_MISSES},
	"bus-cycles":              {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_BUS_CYCLES},
	"stalled-cycles-frontend": {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_STALLED_CYCLES_FRONTEND},
	"stalled-cycles-backend":  {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_STALLED_CYCLES_BACKEND},
	"ref-cycles":              {unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_REF_CPU_CYCLES},
}

// attachPerfEvent opens an event for every CPU where it is to watch all of them, and for every thread where it is to
// watch one process: the kernel knows only events of one CPU or of one thread. Threads that the process starts later
// are watched too.
func attachPerfEvent(prog *ebpf.Program, h *volume.PerfEvent) (_ []link.Link, err error) {
	if err := wantType(prog, ebpf.PerfEvent); err != nil {
		return nil, err
	}
	ev, ok := events[h.Event]
	if !ok {
		return nil, &MissingError{What: "event", Name: h.Event, Where: "there are", Known: slices.Collect(maps.Keys(events))}
	}
	if h.Frequency == 0 && h.Period == 0 {
		return nil, fmt.Errorf("event %q: neither frequency nor period given", h.Event)
	}
	attr := unix.PerfEventAttr{Type: ev.kind, Config: ev.config, Sample: h.Period}
	if h.Frequency != 0 {
		attr.Sample, attr.Bits = h.Frequency, unix.PerfBitFreq
	}

	var links []link.Link
	defer func() {
		if err != nil {
			for _, l := range links {
				err = errors.Join(err, l.Close())
			}
		}
	}()
	if h.PID != 0 {
		attr.Bits |= unix.PerfBitInherit | inheritThread
		err = eachThread(h.PID, func(thread int) error {
			l, err := sample(prog, &attr, thread, h.CPU, h)
			if err == nil {
				links = append(links, l)
			}
			return err
		})
		return links, err
	}
	cpus := []int{h.CPU}
	if h.CPU == everyCPU {
		if cpus, err = onlineCPUs(); err != nil {
			return nil, err
		}
	}
	for _, cpu := range cpus {
		l, err := sample(prog, &attr, everyProcess, cpu, h)
		if err != nil {
			return links, err
		}
		links = append(links, l)
	}
	return links, nil
}

// sample opens one event and runs prog at each of its samples.
func sample(prog *ebpf.Program, attr *unix.PerfEventAttr, pid, cpu int, h *volume.PerfEvent) (link.Link, error) {
	fd, err := perfEventOpen(attr, pid, cpu)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, err // the thread has ended
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return nil, &worded{fmt.Sprintf("event %q: this machine cannot sample it (%v); cpu-clock works everywhere", h.Event, err), []error{err, ebpf.ErrNotSupported}}
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL) && cpu >= 0 && !slices.Contains(online(), cpu):
		return nil, &worded{fmt.Sprintf("event %q: CPU %d is not online; online are %v", h.Event, cpu, online()), []error{ErrMissing}}
	case errors.Is(err, unix.EINVAL) && h.Frequency > 0:
		return nil, unfit("event %q: frequency %d is more than the node takes (kernel.perf_event_max_sample_rate); choose a lower one", h.Event, h.Frequency)
	case err != nil:
		return nil, fmt.Errorf("event %q: %w", h.Event, err)
	}
	defer unix.Close(fd)
	return linkPerfEvent(prog, fd, h.Cookie)
}

func perfEventOpen(attr *unix.PerfEventAttr, pid, cpu int) (int, error) {
	attr.Size = uint32(unsafe.Sizeof(*attr))
	fd, err := unix.PerfEventOpen(attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open perf event: %w", err)
	}
	return fd, nil
}

// eachThread calls f for every thread of a process. It looks again until it finds no new one: a thread that an unseen
// thread starts inherits nothing.
func eachThread(pid int, f func(thread int) error) error {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	seen := map[int]bool{}
	for again := true; again; {
		again = false
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) && len(seen) == 0 {
			return &MissingError{What: "process", Name: strconv.Itoa(pid)}
		} else if err != nil {
			return err
		}
		for _, e := range entries {
			thread, err := strconv.Atoi(e.Name())
			if err != nil || seen[thread] {
				continue
			}
			if err := f(thread); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
			seen[thread], again = true, true
		}
	}
	return nil
}

// onlineCPUs reads the kernel's list, "0-3,8".
func onlineCPUs() ([]int, error) {
	const file = "/sys/devices/system/cpu/online"
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var cpus []int
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for cpu := first; cpu <= last; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// online is onlineCPUs for messages.
func online() []int {
	cpus, _ := onlineCPUs()
	return cpus
}
