// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/pin"
)

// slot is a component with its program, open.
type slot struct {
	Component
	flags  uint32 // as in the configuration; what is not known of them is kept
	prog   *ebpf.Program
	tag    string
	loaded time.Duration // since boot
}

// opened is the dispatcher on an interface with its components, in the order in which they run.
type opened struct {
	attachment
	prog    *ebpf.Program
	version uint8
	slots   []*slot
}

func (d *opened) close() {
	if d == nil {
		return
	}
	d.prog.Close()
	closeSlots(d.slots)
}

func closeSlots(slots []*slot) {
	for _, s := range slots {
		s.prog.Close()
	}
}

// slotsOf are the components of a dispatcher; none of none.
func (d *opened) slotsOf() []*slot {
	if d == nil {
		return nil
	}
	return d.slots
}

// open opens the dispatcher on an interface; nil if there is no program. The caller holds the lock of the protocol, so
// what libxdp does about pins is done or has not begun. The caller must close the result.
//
// Whatever is not as a dispatcher of libxdp is, is a *ForeignError.
func (p Protocol) open(ifindex int) (*opened, error) {
	at, err := attached(ifindex)
	if err != nil || at.id == 0 {
		return nil, err
	}
	prog, err := ebpf.NewProgramFromID(at.id)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errRaced
	} else if err != nil {
		return nil, err
	}
	d := &opened{attachment: at, prog: prog}
	if err := p.readComponents(d, ifindex); err != nil {
		d.close()
		return nil, &ForeignError{ID: at.id, Name: programName(at.id), Why: err.Error()}
	}
	return d, nil
}

func (p Protocol) readComponents(d *opened, ifindex int) error {
	info, err := d.prog.Info()
	if err != nil {
		return err
	}
	if info.Name != dispatcherName {
		return errors.New("it is no dispatcher of libxdp")
	}
	c, err := readConfig(info)
	if err != nil {
		return err
	}
	if c.devBound {
		return errors.New("it is a dispatcher of libxdp that is bound to its device")
	}
	d.version = c.version
	dir := p.dispatchDir(ifindex, d.id)
	pins, err := pin.Names(dir)
	if err != nil {
		return err
	}
	if len(pins) == 0 {
		return fmt.Errorf("it is a dispatcher of libxdp whose components are not pinned in %s", dir)
	}
	for i, sc := range c.slots {
		if !slices.Contains(pins, progPin(i)) && !slices.Contains(pins, linkPin(i)) {
			continue // taken out without a swap: see unpin
		}
		s, err := openSlot(filepath.Join(dir, progPin(i)))
		if err != nil {
			return fmt.Errorf("component %d of libxdp's dispatcher: %w", i, err)
		}
		s.Run = Run{Priority: sc.priority, ProceedOn: sc.actions &^ alwaysProceed, Frags: sc.flags&hasFrags != 0}
		s.flags = sc.flags
		d.slots = append(d.slots, s)
	}
	return nil
}

func openSlot(path string) (*slot, error) {
	prog, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil {
		return nil, err
	}
	s, err := newSlot(prog)
	if err != nil {
		prog.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// newSlot describes a program. The program becomes the slot's.
func newSlot(prog *ebpf.Program) (*slot, error) {
	if prog.Type() != ebpf.Extension {
		return nil, fmt.Errorf("the program is of type %v, and a component of type %v", prog.Type(), ebpf.Extension)
	}
	info, err := prog.Info()
	if err != nil {
		return nil, err
	}
	s := &slot{prog: prog, tag: info.Tag}
	s.ID, _ = info.ID()
	s.Name = fullName(prog, info.Name)
	s.loaded, _ = info.LoadTime()
	return s, nil
}

// shortName is how much of a program's name the kernel keeps (BPF_OBJ_NAME_LEN - 1).
const shortName = 15

// fullName is the name that libxdp takes for a program's (xdp_program__parse_btf): where the kernel may have cut it,
// that of the function in the program's BTF that begins so, if there is just one or one is no longer.
func fullName(prog *ebpf.Program, name string) string {
	if len(name) < shortName {
		return name
	}
	handle, err := prog.Handle()
	if err != nil {
		return name
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return name
	}
	var found []string
	for t, err := range spec.All() {
		if f, ok := t.(*btf.Func); ok && err == nil && strings.HasPrefix(f.Name, name) {
			found = append(found, f.Name)
		}
	}
	if len(found) != 1 {
		return name
	}
	return found[0]
}

// programName returns the name of a loaded program, at most 15 bytes; "" if it is gone.
func programName(id ebpf.ProgramID) string {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return ""
	}
	return info.Name
}
