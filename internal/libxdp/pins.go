// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/pin"
)

// dispatchDir is where the components of a dispatcher are pinned, as protocol.org has it.
func (p Protocol) dispatchDir(ifindex int, id ebpf.ProgramID) string {
	return filepath.Join(p.dir(), fmt.Sprintf("%s%d", dispatchPrefix(ifindex), id))
}

func dispatchPrefix(ifindex int) string { return fmt.Sprintf("dispatch-%d-", ifindex) }

func progPin(i int) string { return slotName(i) + "-prog" }
func linkPin(i int) string { return slotName(i) + "-link" }

// dismantle removes a dispatcher's pins and their directory, as far as they are there.
func dismantle(dir string, reached func(string)) error {
	names, err := pin.Names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := pin.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
		reached("removed " + name)
	}
	err = pin.Remove(dir)
	reached("removed directory")
	return err
}

// dispatchDirs are the directories of dispatchers that are, or were, on an interface.
func (p Protocol) dispatchDirs(ifindex int) (dirs []string, err error) {
	names, err := pin.Names(p.dir())
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasPrefix(name, dispatchPrefix(ifindex)) {
			dirs = append(dirs, filepath.Join(p.dir(), name))
		}
	}
	return dirs, nil
}

// slotsWith are the slots of a dispatcher where a program, or a link of it, is pinned.
func slotsWith(dir string, id ebpf.ProgramID) (slots []int) {
	for i := range maxSlots {
		if pinnedProgram(filepath.Join(dir, progPin(i))) == id || pinnedLink(filepath.Join(dir, linkPin(i))) == id {
			slots = append(slots, i)
		}
	}
	return slots
}

// pinnedProgram is the id of a pinned component, 0 if there is none.
func pinnedProgram(path string) ebpf.ProgramID {
	s, err := openSlot(path)
	if err != nil {
		return 0
	}
	defer s.prog.Close()
	return s.ID
}

// pinnedLink is the id of the program of a pinned link, 0 if there is none.
func pinnedLink(path string) ebpf.ProgramID {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return 0
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0
	}
	return info.Program
}

// unpin removes the pins of one program from a dispatcher's directory, and the directory if nothing else is in it. If
// that dispatcher runs somewhere, this ends the program's part in it: the slot lets packets go on. libxdp cannot read
// such a dispatcher; our next change mends it.
func unpin(dir string, id ebpf.ProgramID, reached func(string)) error {
	for _, i := range slotsWith(dir, id) {
		for _, name := range []string{linkPin(i), progPin(i)} {
			if err := pin.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
			reached("removed " + name)
		}
	}
	os.Remove(dir) // fails if it is not empty
	return nil
}
