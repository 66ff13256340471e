// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// detached is a mount of one of the kernel's file systems that no path leads to. It ends when it is closed.
type detached struct{ root *os.File }

func openDetached(fsType string) (_ *detached, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mount %s: %w", fsType, err)
		}
	}()
	config, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	return &detached{root: os.NewFile(uintptr(fd), fsType)}, nil
}

func (d *detached) Close() error { return d.root.Close() }

// open opens a file or directory; the path may come from a user.
func (d *detached) open(path string) (*os.File, error) {
	return openBeneath(d.root, path, unix.O_RDONLY)
}

// openBeneath opens a path that must not leave dir, neither by ".." nor by a link.
func openBeneath(dir *os.File, path string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (d *detached) read(path string) (string, error) {
	f, err := d.open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	return strings.TrimSpace(string(text)), err
}

// list returns the names of the directories in a directory; none if it cannot be read.
func (d *detached) list(path string) []string {
	f, err := d.open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	return dirNames(f)
}

func dirNames(dir *os.File) []string {
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// notThere reports whether an open failed because of the name: it does not exist, is too long, or leads elsewhere.
func notThere(err error) bool {
	for _, errno := range []error{os.ErrNotExist, unix.ENOTDIR, unix.ENAMETOOLONG, unix.EXDEV, unix.ELOOP, unix.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
