// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Options configures Load.
type Options struct {
	// Types keeps the kernel's BTF between loads: one for the process. It is read when an object first needs it. Nil
	// reads it anew.
	Types *btf.Cache
}

// Collection is a loaded object. The kernel keeps what is pinned or attached when it is closed, and nothing else.
type Collection struct {
	Programs map[string]*ebpf.Program // the attached programs
	Maps     map[string]*ebpf.Map     // by MapInfo.Name

	// Specs are what Programs were loaded from, and Refers the maps by the names that their instructions have for them.
	Specs  map[string]*ebpf.ProgramSpec
	Refers map[string]*ebpf.Map

	pinned []string // maps that Pin pins
}

// Load makes the object's maps and loads its programs. The caller must Close the result. A rejected program is a
// *VerifierError, a hook that this kernel has not and that it wants to know of when it loads is what hook.CheckTarget says;
// errors.Is finds ENOMEM and E2BIG.
func Load(ctx context.Context, o *Object, opts Options) (*Collection, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	loading := ebpf.CollectionOptions{Cache: opts.Types, Programs: ebpf.ProgramOptions{LogDisabled: true}}
	loaded, err := ebpf.NewCollectionWithOptions(o.spec, loading)
	if err != nil {
		return nil, explain(ctx, o, opts, err)
	}
	c := &Collection{
		Programs: map[string]*ebpf.Program{}, Maps: map[string]*ebpf.Map{},
		Specs: map[string]*ebpf.ProgramSpec{}, Refers: loaded.Maps,
	}
	for _, a := range o.attach {
		c.Programs[a.Program], c.Specs[a.Program] = loaded.Programs[a.Program], o.spec.Programs[a.Program]
	}
	for name, prog := range loaded.Programs {
		if c.Programs[name] == nil {
			prog.Close() // tail-called: its program array holds it
		}
	}
	for name, m := range loaded.Maps {
		c.Maps[o.shownAs[name]] = m
	}
	for _, m := range o.maps {
		// The kernel empties a program array when its last descriptor and pin are gone, though programs still use it.
		if m.Shown || m.Type == ebpf.ProgramArray {
			c.pinned = append(c.pinned, m.Name)
		}
	}
	return c, nil
}

// Close lets go of the programs and maps.
func (c *Collection) Close() {
	for _, prog := range c.Programs {
		prog.Close()
	}
	for _, m := range c.Maps {
		m.Close()
	}
}

// Pin pins the programs to dir/progs and to dir/maps the maps that are shown, and program arrays, which would lose
// their programs without a pin. dir lies on a bpffs; it and the two directories are made. After an error the caller
// removes dir.
func (c *Collection) Pin(dir string) error {
	for _, d := range []string{dir, filepath.Join(dir, "maps"), filepath.Join(dir, "progs")} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("pins: %w", withoutPath(err))
		}
	}
	for name, prog := range c.Programs {
		if err := prog.Pin(filepath.Join(dir, "progs", name)); err != nil {
			return fmt.Errorf("pin program %s: %w", quote(name), withoutPath(err))
		}
	}
	for _, name := range c.pinned {
		if err := c.Maps[name].Pin(filepath.Join(dir, "maps", name)); err != nil {
			return fmt.Errorf("pin map %s: %w", quote(name), withoutPath(err))
		}
	}
	return nil
}

// Pinned opens the shown maps of an object that Pin pinned to dir. Programs are none of it: they run, and are not attached
// again. The caller must Close the result.
func Pinned(o *Object, dir string) (_ *Collection, err error) {
	c := &Collection{Maps: map[string]*ebpf.Map{}}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	for _, m := range o.maps {
		if !m.Shown {
			continue
		}
		if c.Maps[m.Name], err = ebpf.LoadPinnedMap(filepath.Join(dir, "maps", m.Name), nil); err != nil {
			return nil, fmt.Errorf("pins: map %s: %w", quote(m.Name), withoutPath(err))
		}
	}
	return c, nil
}

// withoutPath keeps the path, which names the volume, out of messages.
func withoutPath(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
