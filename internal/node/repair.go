// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// isSound says whether a published volume has everything that repair could bring back, without taking its lock.
func (e *Engine) isSound(v Volume, points []dispatcher.PointStatus) bool {
	for i := range v.Attachments {
		if i >= len(v.Programs) || e.isAttached(v, i, points) {
			continue
		}
		return false
	}
	return len(e.lostPins(v)) == 0
}

// isAttached says whether attachment i of a volume is as it was made.
func (e *Engine) isAttached(v Volume, i int, points []dispatcher.PointStatus) bool {
	p, at := v.Programs[i], v.Attachments[i]
	if kind := volume.Kind(p.Hook); kind == volume.KindXDP || kind == volume.KindTC {
		return slices.ContainsFunc(points, func(s dispatcher.PointStatus) bool {
			return s.Kind == kind && s.NetNS == at.NetNS && s.IfIndex == at.IfIndex && strings.HasSuffix(p.Point, string(s.Direction)) &&
				slices.ContainsFunc(s.Members, func(m dispatcher.MemberStatus) bool { return m.Volume == v.name && m.Program == p.Name })
		})
	}
	links, err := entryNames(filepath.Join(e.pins(v.name), "links"))
	if err != nil {
		return false
	}
	n := 0
	for _, pin := range links {
		if !strings.HasPrefix(pin, strconv.Itoa(i)+"-") {
			continue
		}
		l, err := readLink(filepath.Join(e.pins(v.name), "links"), pin, v.Record)
		if err != nil || l.gone != "" {
			return false
		}
		n++
	}
	// Links are numbered from 0, so a gap is one that is missing. Of a perf event, which has one for each CPU, the last may be.
	return n > 0 && slices.Contains(links, filepath.Base(e.linkPin(v.name, i, n-1, p.Name)))
}

// repairVolume brings back what somebody took away of a volume's own: its links, its members at shared points, its pins. It
// says what it did. The caller holds the volume's lock.
func (e *Engine) repairVolume(ctx context.Context, v Volume, points []dispatcher.PointStatus) (did []string, err error) {
	did, err = e.repin(v, points)
	if err != nil {
		return did, err
	}
	var errs []error
	for i := range min(len(v.Attachments), len(v.Programs)) {
		if e.isAttached(v, i, points) {
			continue
		}
		done, err := e.reattach(ctx, v, i)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: program %.64q: %w", v.Programs[i].Point, v.Programs[i].Name, err))
		} else if done {
			did = append(did, fmt.Sprintf("%s: program %.64q was attached again", v.Programs[i].Point, v.Programs[i].Name))
		}
	}
	return did, errors.Join(errs...)
}

// reattach attaches a pinned program again where it was. done is false where that place is gone, or cannot be told from
// another.
func (e *Engine) reattach(ctx context.Context, v Volume, i int) (done bool, err error) {
	at := v.Attachments[i]
	h, err := at.hook()
	if err != nil {
		return false, err
	}
	program := v.Programs[i].Name
	if at.NetNS == 0 && slices.Contains([]volume.Kind{volume.KindXDP, volume.KindTC, volume.KindNetkit, volume.KindNetfilter, volume.KindSKLookup}, h.Kind()) {
		return false, nil
	}
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(e.pins(v.name), "progs", program), nil)
	if err != nil {
		return false, pinsError(err)
	}
	defer prog.Close()
	switch h := h.(type) {
	case *volume.XDP:
		m := dispatcher.Member{Volume: v.name, Program: program, Priority: h.Priority, ProceedOn: h.ProceedOn}
		return e.points.Rejoin(ctx, at.point(h), h.Mode, m, prog)
	case *volume.TC:
		m := dispatcher.Member{Volume: v.name, Program: program, Priority: h.Priority, ProceedOn: h.ProceedOn}
		return e.points.Rejoin(ctx, at.point(h), "", m, prog)
	case *volume.Netkit:
		_, err = e.points.InNetNS(at.NetNS, func() error {
			device, err := net.InterfaceByName(h.Interfaces[0])
			if err != nil || device.Index != at.IfIndex {
				return nil //nolint:nilerr // gone, or another one by its name
			}
			done = true
			return e.relink(v, i, program, prog, h)
		})
		return done, err
	case *volume.Netfilter, *volume.SKLookup:
		return e.points.InNetNS(at.NetNS, func() error { return e.relink(v, i, program, prog, h) })
	case *volume.Cgroup, *volume.Uprobe:
		if !e.isPods(v) {
			return false, nil // the command line may have another view of files than this process
		}
	}
	return true, e.relink(v, i, program, prog, h)
}

// point is where an attachment to a shared hook is.
func (a Attachment) point(h volume.Hook) dispatcher.Point {
	p := dispatcher.Point{Kind: h.Kind(), NetNS: a.NetNS, IfIndex: a.IfIndex, Interface: volume.Interfaces(h)[0]}
	if tc, ok := h.(*volume.TC); ok {
		p.Direction = tc.Direction
	}
	return p
}

// relink attaches a program anew before it lets go of the links that are left of attachment i: those of a perf event are
// one for each CPU.
func (e *Engine) relink(v Volume, i int, program string, prog *ebpf.Program, h volume.Hook) error {
	fresh, err := hook.Attach(prog, h)
	defer func() {
		for _, l := range fresh {
			l.Close()
		}
	}()
	if err != nil {
		return err
	}
	dir := filepath.Join(e.pins(v.name), "links")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return pinsError(err)
	}
	old, err := entryNames(dir)
	if err != nil {
		return pinsError(err)
	}
	for _, pin := range old {
		if strings.HasPrefix(pin, strconv.Itoa(i)+"-") {
			if err := os.Remove(filepath.Join(dir, pin)); err != nil {
				return pinsError(err)
			}
		}
	}
	for j, l := range fresh {
		if err := l.Pin(e.linkPin(v.name, i, j, program)); err != nil {
			return pinsError(err)
		}
	}
	return nil
}

// isPods says whether all of a volume's targets are of pods.
func (e *Engine) isPods(v Volume) bool {
	return e.opts.TargetRoot != "" && !slices.ContainsFunc(v.Targets, func(t Target) bool { return !isBelow(t.Path, e.opts.TargetRoot) })
}

func isBelow(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != "." && filepath.IsLocal(rel)
}

// lostPin is a program or a map of which a volume has no pin any more.
type lostPin struct{ dir, name string }

// lostPins lists them. Without any pins there is nothing to bring back: somebody unmounted the bpffs.
func (e *Engine) lostPins(v Volume) (lost []lostPin) {
	if !e.pinned(v.name) {
		return nil
	}
	missing := func(dir string, names []string) {
		have, _ := entryNames(filepath.Join(e.pins(v.name), dir))
		for _, name := range names {
			if p := (lostPin{dir, name}); !slices.Contains(have, name) && !slices.Contains(lost, p) {
				lost = append(lost, p)
			}
		}
	}
	var programs, maps []string
	for _, p := range v.Programs {
		programs = append(programs, p.Name)
	}
	missing("progs", programs)
	for _, t := range v.Targets {
		if shown, err := podfs.Read(t.Path); err == nil {
			for _, m := range shown.Maps {
				maps = append(maps, m.Name)
			}
			break
		}
	}
	missing("maps", maps)
	return lost
}

// repin pins again what the kernel still has: programs because they run, maps because the pod sees them.
func (e *Engine) repin(v Volume, points []dispatcher.PointStatus) (did []string, err error) {
	for _, p := range e.lostPins(v) {
		dir := filepath.Join(e.pins(v.name), p.dir)
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return did, pinsError(err)
		}
		what, pin := "program", filepath.Join(dir, p.name)
		if p.dir == "maps" {
			what, err = "map", e.repinMap(v, p.name, pin)
		} else {
			err = e.repinProgram(v, points, p.name, pin)
		}
		if err != nil {
			return did, fmt.Errorf("the pin of %s %.64q is gone: %w", what, p.name, err)
		}
		did = append(did, fmt.Sprintf("%s %.64q was pinned again", what, p.name))
	}
	return did, nil
}

func (e *Engine) repinProgram(v Volume, points []dispatcher.PointStatus, name, pin string) error {
	id, err := e.runningID(v, points, name)
	if err != nil {
		return err
	}
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err
	}
	defer prog.Close()
	return prog.Pin(pin)
}

// runningID finds a program of a volume where it is attached.
func (e *Engine) runningID(v Volume, points []dispatcher.PointStatus, name string) (ebpf.ProgramID, error) {
	for _, s := range points {
		for _, m := range s.Members {
			if m.Volume == v.name && m.Program == name {
				return m.Loaded.ID, nil
			}
		}
	}
	links, err := e.ownLinks(v.name, v.Record)
	for _, l := range links {
		if l.program.Name == name {
			return l.loaded, nil
		}
	}
	return 0, errors.Join(errors.New("nothing runs of it"), err)
}

func (e *Engine) repinMap(v Volume, name, pin string) error {
	var errs []error
	for _, t := range v.Targets {
		id, err := podfs.MapID(t.Path, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return err
		}
		defer m.Close()
		return m.Pin(pin)
	}
	return errors.Join(errs...)
}
