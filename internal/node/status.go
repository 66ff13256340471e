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
	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// PointStatus is one hook at one place with what runs there, in order. Kernel ids are of this moment: a change of
// membership changes them.
type PointStatus struct {
	Point     string           `json:"point"` // in words: "xdp eth0", "tracepoint syscalls/sys_enter_execve"
	Hook      string           `json:"hook"`  // as in the attributes: "xdp"
	Direction volume.Direction `json:"direction,omitempty"`
	Interface Interface        `json:"interface,omitzero"` // of hooks that have one
	Mode      string           `json:"mode,omitempty"`     // "native", "generic", "tcx", "clsact"
	// Program is what the kernel runs for all members, where these share one program.
	Program LoadedProgram `json:"program,omitzero"`
	LinkID  uint32        `json:"linkID,omitempty"`
	// Problem is what is wrong with the point; Severed is for programs: nothing runs there any more.
	Problem string         `json:"problem,omitempty"`
	Severed bool           `json:"severed,omitempty"`
	Members []MemberStatus `json:"members"`
}

// LoadedProgram is a program as bpftool shows it.
type LoadedProgram struct {
	ID   uint32 `json:"id"`
	Name string `json:"name"`
}

// MemberStatus is one program at a point.
type MemberStatus struct {
	Program   string           `json:"program"`
	Priority  *int             `json:"priority,omitempty"`
	ProceedOn []volume.Verdict `json:"proceedOn,omitempty"`
	VolumeID  string           `json:"volumeID"`
	Pods      []Pod            `json:"pods,omitempty"`
	Image     string           `json:"image"`  // as the volume names it
	Digest    digest.Digest    `json:"digest"` // what that was
	// ProgramID is the member's own program, loaded alone. What packets meet is that of the point.
	ProgramID uint32 `json:"programID,omitempty"`
	LinkID    uint32 `json:"linkID,omitempty"` // of its own
	// Way is how the program runs beside others, and Why the reason if it has a slot or is idle. Empty where it does not
	// run, and where the kernel itself shares the hook.
	Way dispatcher.Way `json:"way,omitempty"`
	Why string         `json:"why,omitempty"`
	// Counts are the program's results, where they are counted.
	Counts *dispatcher.Counts `json:"counts,omitempty"`
	// Runs is how often ProgramID ran; the kernel counts only with sysctl kernel.bpf_stats_enabled=1, and not what is fused.
	Runs uint64 `json:"runs,omitempty"`
	// Gone says why the program does not run, where the kernel itself shares the hook: "the cgroup is gone".
	Gone string `json:"gone,omitempty"`
}

// Status returns every point at which a volume's program runs, read from the kernel: interfaces first, by name, those of
// other network namespaces last, then the hooks that have none. What cannot be read is an error, and hides nothing else.
func (e *Engine) Status() (points []PointStatus, err error) {
	err = e.opts.Host.Do(func() (err error) {
		points, err = e.status()
		return err
	})
	return points, err
}

func (e *Engine) status() ([]PointStatus, error) {
	volumes, err := e.volumes()
	if err != nil {
		return nil, err
	}
	var errs []error
	byName := map[string]Record{}
	own := map[string]*PointStatus{}
	for _, v := range volumes {
		byName[v.name] = v.Record
		links, err := e.ownLinks(v.name, v.Record)
		if err != nil {
			errs = append(errs, err)
		}
		for _, l := range links {
			p := own[l.program.Point]
			if p == nil {
				p = &PointStatus{Point: l.program.Point, Hook: l.program.Hook}
				own[p.Point] = p
			}
			m := owned(v.Record, l.program.Name)
			m.LinkID, m.ProgramID, m.Runs, m.Gone = uint32(l.id), uint32(l.loaded), runs(l.loaded), l.gone
			p.Members = append(p.Members, m)
		}
	}
	shared, err := e.points.Status()
	if err != nil {
		errs = append(errs, err)
	}
	var out []PointStatus
	for _, s := range shared {
		out = append(out, e.sharedPoint(s, byName))
	}
	for _, p := range own {
		out = append(out, *p)
	}
	slices.SortFunc(out, comparePoints)
	return out, errors.Join(errs...)
}

func (e *Engine) sharedPoint(s dispatcher.PointStatus, records map[string]Record) PointStatus {
	i, wrong := e.look(s)
	p := PointStatus{
		Point: pointAt(s.Point, i), Hook: string(s.Kind), Direction: s.Direction, Interface: i,
		Mode: cmp.Or(string(s.Mode), s.Carrier), LinkID: uint32(s.Link), Problem: wrong.Text, Severed: s.Severed,
	}
	if s.Program.ID != 0 && !s.Severed {
		p.Program = LoadedProgram{ID: uint32(s.Program.ID), Name: s.Program.Name}
	}
	for _, m := range s.Members {
		rec, ok := records[m.Volume]
		if !ok {
			rec.VolumeID = m.Volume // what a crash left, until the node plugin starts
		}
		ms := owned(rec, m.Program)
		ms.Priority, ms.ProceedOn = &m.Priority, m.ProceedOn
		ms.ProgramID, ms.Runs = uint32(m.Loaded.ID), runs(m.Loaded.ID)
		ms.Way, ms.Why, ms.Counts = m.Way, m.Why, m.Counts
		p.Members = append(p.Members, ms)
	}
	return p
}

// comparePoints sorts the hooks of an interface as a packet meets them: xdp, tc ingress, tc egress.
func comparePoints(a, b PointStatus) int {
	hook := func(p PointStatus) int {
		if i := slices.Index(volume.Kinds, volume.Kind(p.Hook)); i >= 0 {
			return i
		}
		return len(volume.Kinds) // unknown, as the record cannot be read
	}
	return cmp.Or(compareInterfaces(a.Interface, b.Interface), cmp.Compare(hook(a), hook(b)), -cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Point, b.Point))
}

// ownLink is a link that a volume pinned for a hook that the kernel itself shares.
type ownLink struct {
	program podfs.Program // as in the record
	id      link.ID
	loaded  ebpf.ProgramID
	gone    string // what it was attached to and is no more
}

// ownLinks reads the links of a volume, in the order of its record. A pin that is odd is an error, and hides no other.
func (e *Engine) ownLinks(name string, rec Record) ([]ownLink, error) {
	dir := filepath.Join(e.pins(name), "links")
	pins, err := entryNames(dir)
	if err != nil {
		return nil, nil //nolint:nilerr // being unpublished
	}
	var links []ownLink
	var errs []error
	for _, pin := range pins {
		l, err := readLink(dir, pin, rec)
		if err != nil {
			errs = append(errs, fmt.Errorf("pins: link %q: %w", pin, err))
			continue
		}
		links = append(links, l)
	}
	return links, errors.Join(errs...)
}

// readLink reads a pin, which linkPin names: <index of the program in the record>-<index of the link>-<program>.
func readLink(dir, pin string, rec Record) (ownLink, error) {
	parts := strings.SplitN(pin, "-", 3)
	i, err := strconv.Atoi(parts[0])
	if err != nil || len(parts) < 3 {
		return ownLink{}, errors.New("unexpected")
	}
	read := ownLink{program: podfs.Program{Name: parts[2], Point: "unknown"}} // the record cannot be read
	if i >= 0 && i < len(rec.Programs) {
		read.program = rec.Programs[i]
	}
	l, err := link.LoadPinnedLink(filepath.Join(dir, pin), nil)
	if err != nil {
		return ownLink{}, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return ownLink{}, err
	}
	read.id, read.loaded, read.gone = info.ID, info.Program, hook.Gone(info)
	return read, nil
}

func owned(rec Record, program string) MemberStatus {
	return MemberStatus{Program: program, VolumeID: rec.VolumeID, Pods: rec.pods(), Image: rec.Image, Digest: rec.Digest}
}

// runs is how often a program ran; zero where the kernel does not count.
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
