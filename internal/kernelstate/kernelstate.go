// SPDX-License-Identifier: Apache-2.0

// Package kernelstate says what this machine's kernel holds of the kinds bpfvol makes: BPF programs, links and maps,
// mounts, named network namespaces and pins. Two snapshots and their difference answer "is anything left?".
//
//	before, err := kernelstate.Take("/sys/fs/bpf")
//	...
//	left, err := kernelstate.Leftovers(ctx, before, "/sys/fs/bpf") // waits for what the kernel frees late
//
// A snapshot sees the whole machine, so what another process makes in between is listed, too: the kernel does not
// say who made an object. Only what systemd makes for its units is left out.
//
// Invariant: an object of any of these kinds that was made after a snapshot and is alive is listed
// (TestSinceNamesWhatWasMade).
package kernelstate

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Snapshot is what existed at one moment. The zero Snapshot is empty: everything that exists came after it.
type Snapshot struct {
	objects map[object]string // to words for a reader: `"count" (XDP)`
}

// object identifies a kernel object. BPF ids are not reused before the counter wraps; mount ids are, so a mount is
// known by its place as well.
type object struct {
	kind kind
	id   uint32
	path string
}

type kind int

// In the order in which they are listed: what holds others comes first.
const (
	linkKind kind = iota
	programKind
	mapKind
	pinKind
	mountKind
	netnsKind
)

func (k kind) String() string {
	return [...]string{"link", "program", "map", "pin", "mount", "netns"}[k]
}

// netnsDir is where iproute2 binds network namespaces that have a name.
const netnsDir = "/run/netns"

// Take lists what exists now, with the files below dirs as pins; a directory that does not exist holds none.
// It needs CAP_SYS_ADMIN.
func Take(dirs ...string) (Snapshot, error) {
	s := Snapshot{objects: map[object]string{}}
	for _, add := range []func() error{s.addLinks, s.addPrograms, s.addMaps, s.addMounts} {
		if err := add(); err != nil {
			return Snapshot{}, fmt.Errorf("kernel state: %w", err)
		}
	}
	if err := s.addFiles(netnsKind, netnsDir); err != nil {
		return Snapshot{}, fmt.Errorf("kernel state: %w", err)
	}
	for _, dir := range dirs {
		if err := s.addFiles(pinKind, dir); err != nil {
			return Snapshot{}, fmt.Errorf("kernel state: %w", err)
		}
	}
	return s, nil
}

// Since lists what s holds and before does not, one line each, as in `program 12 "count" (XDP)`.
func (s Snapshot) Since(before Snapshot) []string {
	var made []object
	for o := range s.objects {
		if _, ok := before.objects[o]; !ok {
			made = append(made, o)
		}
	}
	slices.SortFunc(made, func(a, b object) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.path, b.path), cmp.Compare(a.id, b.id))
	})
	var lines []string
	for _, o := range made {
		name := o.path
		if name == "" {
			name = fmt.Sprint(o.id)
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprint(o.kind, " ", name, " ", s.objects[o])))
	}
	return lines
}

// Names lists what s holds without ids, in order, one line each, as in `program "count" (XDP)`. Two snapshots with the same
// names hold the same, but for objects that were replaced by their like.
func (s Snapshot) Names() []string {
	lines := make([]string, 0, len(s.objects))
	for o, words := range s.objects {
		lines = append(lines, strings.Join(strings.Fields(fmt.Sprint(o.kind, " ", o.path, " ", words)), " "))
	}
	slices.Sort(lines)
	return lines
}

func (s Snapshot) addLinks() error {
	it := new(link.Iterator)
	defer it.Close()
	for again := 0; it.Next() || errors.Is(it.Err(), unix.EAGAIN) && again < 100; {
		if it.Err() != nil { // some process is making this link and is not done (bpf_link_by_id, kernel/bpf/syscall.c)
			*it = link.Iterator{ID: it.ID}
			again++
			time.Sleep(time.Millisecond)
			continue
		}
		words := ""
		if info, err := it.Link.Info(); err == nil {
			words = "(" + linkType(info.Type) + ")"
		}
		s.objects[object{kind: linkKind, id: uint32(it.ID)}] = words
	}
	return it.Err()
}

func linkType(t link.Type) string {
	switch t {
	case link.RawTracepointType:
		return "RawTracepoint"
	case link.TracingType:
		return "Tracing"
	case link.CgroupType:
		return "Cgroup"
	case link.IterType:
		return "Iter"
	case link.NetNsType:
		return "NetNs"
	case link.XDPType:
		return "XDP"
	case link.PerfEventType:
		return "PerfEvent"
	case link.NetfilterType:
		return "Netfilter"
	case link.TCXType:
		return "TCX"
	case link.NetkitType:
		return "Netkit"
	}
	return fmt.Sprint("type ", uint32(t))
}

func (s Snapshot) addPrograms() error {
	var id ebpf.ProgramID
	for {
		var err error
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			return endOfList(err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone in between
		} else if err != nil {
			return fmt.Errorf("program %d: %w", id, err)
		}
		info, err := p.Info()
		p.Close()
		words := ""
		if err == nil {
			words = fmt.Sprintf("%q (%v)", info.Name, info.Type)
		}
		if err == nil && systemd(info.Name) {
			continue
		}
		s.objects[object{kind: programKind, id: uint32(id)}] = words
	}
}

func (s Snapshot) addMaps() error {
	var id ebpf.MapID
	for {
		var err error
		if id, err = ebpf.MapGetNextID(id); err != nil {
			return endOfList(err)
		}
		m, err := ebpf.NewMapFromID(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone in between
		} else if err != nil {
			return fmt.Errorf("map %d: %w", id, err)
		}
		info, err := m.Info()
		m.Close()
		words := ""
		if err == nil {
			words = fmt.Sprintf("%q (%v)", info.Name, info.Type)
		}
		if err == nil && systemd(info.Name) {
			continue
		}
		s.objects[object{kind: mapKind, id: uint32(id)}] = words
	}
}

// systemd names the programs and maps it makes when a unit starts "sd_devices", "sd_fw_egress" and so on
// (systemd, src/core/bpf-*.c).
func systemd(name string) bool { return strings.HasPrefix(name, "sd_") }

func endOfList(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// mountTypes are the file systems that bpfvol and its tests mount. Others come and go by themselves (removable
// media, containers).
var mountTypes = []string{"bpf", "tmpfs", "nsfs", "tracefs", "debugfs", "cgroup2", "sysfs", "proc"}

// addMounts reads mountinfo(5): id, parent, device, root, mount point, options, optional fields, "-", type, ...
func (s Snapshot) addMounts() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var id uint32
		fields := strings.Fields(lines.Text())
		end := slices.Index(fields, "-")
		if end < 6 || end+1 >= len(fields) {
			return fmt.Errorf("mountinfo: unknown line %q", lines.Text())
		}
		if _, err := fmt.Sscan(fields[0], &id); err != nil {
			return fmt.Errorf("mountinfo: mount id %q: %w", fields[0], err)
		}
		if fsType := fields[end+1]; slices.Contains(mountTypes, fsType) {
			s.objects[object{kind: mountKind, id: id, path: fields[4]}] = "(" + fsType + ")"
		}
	}
	return lines.Err()
}

func (s Snapshot) addFiles(k kind, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		if !d.IsDir() {
			s.objects[object{kind: k, path: path}] = ""
		}
		return nil
	})
}
