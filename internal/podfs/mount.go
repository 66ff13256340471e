// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Options are what all volumes have in common.
type Options struct {
	// Root is the directory below which targets must lie, and below which no symlink is followed. Empty: /.
	Root string
	// Types is the process's cache of the kernel's BTF. Nil: load it, which takes longer than all the rest.
	Types *btf.Cache

	// step is called before each step that leaves something behind, for tests that end the process there.
	step func(string)
}

// The files of a volume.
const (
	fileVolume = "volume.json"
	fileTypes  = "types.btf"
	dirMaps    = "maps"
	dirJSON    = "json"
	dirIter    = "iter"
	// dirWritable has the maps with access rw, and is not there without any.
	dirWritable = "rw"
)

// Tree is a volume that nobody sees yet. It goes with Close unless it has been mounted.
type Tree struct {
	opts Options
	top  *superblock // volume.json, types.btf, and where to attach the pins
	pins *superblock
	dirs []string    // of pins
	rw   *superblock // nil without a map to write
}

// Build makes the volume's file systems, with pins and iterators, and makes them read-only. The caller must Close it.
// It leaves nothing behind, so it can be done while something slower goes on.
func Build(ctx context.Context, c Content, opts Options) (_ *Tree, err error) {
	if opts.step == nil {
		opts.step = func(string) {}
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	t := &Tree{opts: opts}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if err := t.fill(ctx, c); err != nil {
		return nil, err
	}
	return t, nil
}

// Close gives up the descriptors, and with them what is not mounted.
func (t *Tree) Close() {
	for _, s := range []*superblock{t.top, t.pins, t.rw} {
		if s != nil {
			s.root.Close()
		}
	}
}

// Mount puts the volume on target, and makes the directory if it is not there; the directory above it must be. If it
// fails, nothing is left. A target that cannot be used is a *TargetError; one that has a volume of ours is, too.
func (t *Tree) Mount(target string) (err error) {
	parent, err := openParent(target, t.opts.Root)
	if err != nil {
		return err
	}
	defer parent.Close()
	dir, created, err := makeTarget(parent, target)
	if err != nil {
		return err
	}
	defer dir.Close()
	if created {
		defer func() {
			if err != nil {
				err = errors.Join(err, removeTarget(parent, target))
			}
		}()
	}
	return t.attach(dir)
}

// makeTarget opens the target, an empty directory, and makes it if need be.
func makeTarget(parent *os.File, target string) (_ *os.File, created bool, err error) {
	err = unix.Mkdirat(int(parent.Fd()), filepath.Base(target), 0o750)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, false, fmt.Errorf("target: mkdir: %w", err)
	}
	created = err == nil
	f, err := openTarget(parent, target)
	if err != nil {
		return nil, false, err
	}
	if created {
		return f, true, nil
	}
	mounted, err := ours(f, target)
	switch {
	case err != nil:
	case mounted:
		err = taken(target, "a volume is mounted there already; unpublish it")
	default:
		err = checkEmpty(f, target)
	}
	if err != nil {
		f.Close()
		return nil, false, err
	}
	return f, false, nil
}

func (t *Tree) fill(ctx context.Context, c Content) (err error) {
	l, err := labelOf(c.Context)
	if err != nil {
		return err
	}
	t.dirs = c.Volume.dirs()
	if t.pins, err = newPins(l, t.dirs...); err != nil {
		return err
	}
	for _, it := range c.Iterators {
		if err := pinLink(it, t.pins); err != nil {
			return err
		}
	}
	v := c.Volume
	v.Version = version
	v.Programs = append([]Program{}, v.Programs...) // never null
	v.Maps = []Shown{}
	for _, m := range c.Maps {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		shown, err := pinMap(m, t.pins, t.opts.Types)
		if err != nil {
			return err
		}
		v.Maps = append(v.Maps, shown)
	}
	dirs := t.dirs
	if c.writable() {
		if t.rw, err = newWritable(l, c.Maps); err != nil {
			return err
		}
		dirs = append(dirs, dirWritable)
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", fileVolume, err)
	}
	if t.top, err = newTop(append(text, '\n'), c.Types, dirs, c.owner(), l); err != nil {
		return err
	}
	for _, s := range []*superblock{t.pins, t.top} {
		if err := s.freeze(); err != nil {
			return err
		}
	}
	return nil
}

// newTop makes the tmpfs, as large as its files.
func newTop(text, types []byte, dirs []string, o owner, l label) (_ *superblock, err error) {
	const page, inodes = 4096, 16
	pages := len(text)/page + len(types)/page + inodes
	s, err := newSuperblock("tmpfs", o, l, map[string]string{
		"source":    source,
		"size":      strconv.Itoa(pages * page),
		"nr_inodes": strconv.Itoa(inodes),
	})
	if err != nil {
		return nil, err
	}
	err = s.write(fileVolume, text, o)
	for _, dir := range dirs {
		err = errors.Join(err, s.mkdir(dir, o))
	}
	if len(types) > 0 {
		err = errors.Join(err, s.write(fileTypes, types, o))
	}
	if err != nil {
		s.root.Close()
		return nil, err
	}
	return s, nil
}

// attach puts the volume on a directory. It is complete when the last step is done.
func (t *Tree) attach(dir *os.File) (err error) {
	step := t.opts.step
	step("attach top")
	if err := t.top.attach(int(dir.Fd())); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.top.detach())
		}
	}()
	step("clone pins")
	if err := t.attachParts(t.pins, t.dirs...); err != nil {
		return err
	}
	if t.rw != nil {
		step("clone rw")
		if err := t.attachParts(t.rw, dirWritable); err != nil {
			return err
		}
	}
	step("done")
	return nil
}

// attachParts puts directories of a file system on those of the same names at the top.
func (t *Tree) attachParts(s *superblock, names ...string) error {
	var dirs []*os.File
	defer func() { closeAll(dirs) }()
	for _, name := range names {
		fd, err := unix.Openat(t.top.fd(), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		dirs = append(dirs, os.NewFile(uintptr(fd), name))
	}
	parts, err := s.parts(int(dirs[0].Fd()), names...)
	if err != nil {
		return err
	}
	defer closeAll(parts)
	for i, part := range parts {
		t.opts.step("attach " + part.Name())
		if err := move(int(part.Fd()), int(dirs[i].Fd())); err != nil {
			return fmt.Errorf("attach %s: %w", part.Name(), err)
		}
	}
	return nil
}
