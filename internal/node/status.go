// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Volume is one volume as List shows it: its record, and whether its target still shows it.
type Volume struct {
	Record
	Mounted bool `json:"mounted"`

	name string // of its record and pins
}

// PointStatus is one hook at one place with what runs there, in order.
type PointStatus struct {
	Point   string         `json:"point"`          // "xdp eth0", "tracepoint syscalls/sys_enter_execve"
	Mode    string         `json:"mode,omitempty"` // "native", "generic", "tcx", "clsact"
	Severed bool           `json:"severed,omitempty"`
	Members []MemberStatus `json:"members"`
}

// MemberStatus is one program at a point. Kernel ids are of this moment: a change of membership changes them.
type MemberStatus struct {
	Program   string           `json:"program"`
	Priority  *int             `json:"priority,omitempty"`
	ProceedOn []volume.Verdict `json:"proceedOn,omitempty"`
	VolumeID  string           `json:"volumeID"`
	Pod       Pod              `json:"pod,omitzero"`
	Image     string           `json:"image"`
	ProgramID uint32           `json:"programID,omitempty"`
	LinkID    uint32           `json:"linkID,omitempty"`
	// Runs is how often the program ran; the kernel counts only with sysctl kernel.bpf_stats_enabled=1.
	Runs uint64 `json:"runs,omitempty"`
}

// Count returns how many volumes have a record. Unlike List it looks at no volume.
func (e *Engine) Count() (int, error) {
	names, err := e.records.names()
	return len(names), err
}

// List returns every volume with a record, by id.
func (e *Engine) List() ([]Volume, error) {
	names, err := e.records.names()
	if err != nil {
		return nil, err
	}
	var out []Volume
	for _, name := range names {
		rec, err := e.records.read(name)
		if errors.Is(err, ErrUnknownVolume) {
			continue // unpublished in the meantime
		}
		if err != nil { // Unpublish takes it away all the same; until then it hides no other volume
			out = append(out, Volume{Record: Record{VolumeID: name, State: stateUnreadable}, name: name})
			continue
		}
		mounted, err := podfs.Mounted(rec.Target)
		if err != nil {
			return nil, err
		}
		out = append(out, Volume{Record: *rec, Mounted: mounted, name: name})
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.VolumeID, b.VolumeID) })
	return out, nil
}

// Status returns every point at which a volume's program runs, read from the kernel, by point.
func (e *Engine) Status() ([]PointStatus, error) {
	volumes, err := e.List()
	if err != nil {
		return nil, err
	}
	byName := map[string]Record{}
	points := map[string]*PointStatus{}
	at := func(point string) *PointStatus {
		if points[point] == nil {
			points[point] = &PointStatus{Point: point}
		}
		return points[point]
	}
	for _, v := range volumes {
		byName[v.name] = v.Record
		members, err := e.ownLinks(v.name, v.Record)
		if err != nil {
			return nil, err
		}
		for point, ms := range members {
			at(point).Members = append(at(point).Members, ms...)
		}
	}
	shared, err := e.points.Status()
	if err != nil {
		return nil, err
	}
	for _, s := range shared {
		p := at(s.Point.String())
		p.Mode, p.Severed = cmp.Or(string(s.Mode), s.Carrier), s.Severed
		for _, m := range s.Members {
			ms := owned(byName[m.Volume], m.Program)
			ms.Priority, ms.ProceedOn = &m.Priority, m.ProceedOn
			ms.LinkID, ms.ProgramID, ms.Runs = uint32(s.Link), uint32(m.Loaded.ID), runs(m.Loaded.ID)
			p.Members = append(p.Members, ms)
		}
	}
	var out []PointStatus
	for _, p := range points {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b PointStatus) int { return cmp.Compare(a.Point, b.Point) })
	return out, nil
}

// ownLinks reads the links that a volume pinned for hooks that the kernel itself shares, by point.
func (e *Engine) ownLinks(name string, rec Record) (map[string][]MemberStatus, error) {
	dir := filepath.Join(e.pins(name), "links")
	pins, err := entryNames(dir)
	if err != nil {
		return nil, nil //nolint:nilerr // being unpublished
	}
	out := map[string][]MemberStatus{}
	for _, pin := range pins {
		// linkPin: <index of the program in the record>-<index of the link>-<program>
		parts := strings.SplitN(pin, "-", 3)
		i, err := strconv.Atoi(parts[0])
		if err != nil || len(parts) < 3 {
			return nil, fmt.Errorf("pins: unexpected link %q", pin)
		}
		program := podfs.Program{Name: parts[2], Point: "unknown"} // the record cannot be read
		if i < len(rec.Programs) {
			program = rec.Programs[i]
		}
		l, err := link.LoadPinnedLink(filepath.Join(dir, pin), nil)
		if err != nil {
			return nil, fmt.Errorf("pins: link %q: %w", pin, err)
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			return nil, fmt.Errorf("pins: link %q: %w", pin, err)
		}
		ms := owned(rec, program.Name)
		ms.LinkID, ms.ProgramID, ms.Runs = uint32(info.ID), uint32(info.Program), runs(info.Program)
		out[program.Point] = append(out[program.Point], ms)
	}
	return out, nil
}

func owned(rec Record, program string) MemberStatus {
	ms := MemberStatus{Program: program, VolumeID: rec.VolumeID, Pod: rec.Pod}
	if rec.Image != "" {
		ms.Image = rec.Image + "@" + rec.Digest.String()
	}
	return ms
}

// runs is zero where the kernel does not count, which needs no explanation here: `bpfvol status` has the column.
func runs(id ebpf.ProgramID) uint64 {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return 0
	}
	defer prog.Close()
	stats, err := prog.Stats()
	if err != nil {
		return 0
	}
	return stats.RunCount
}
