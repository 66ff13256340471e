// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Unmount takes away what Mount made, complete or not, and the target directory. It is not an error if there is nothing.
// Whatever is not ours it leaves alone, with a *TargetError.
//
// The mount goes at once and whole, with the bpffs below it, whoever has files of it open: those keep what they have open,
// and nothing else. (CleanupMountPoint of mount-utils takes one mount at a time, by path, and runs umount(8), which an
// image from scratch does not have.)
func Unmount(target string) error {
	parent, err := openAbove(target)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	for {
		more, err := unmountTop(parent, target)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !more {
			return removeTarget(parent, target)
		}
	}
}

// openAbove opens the directory that target is in, to take a mount away or to look at it. The mount itself says whether
// it is ours.
func openAbove(target string) (*os.File, error) {
	if !filepath.IsAbs(target) || target != filepath.Clean(target) || target == "/" {
		return nil, badPath(target, "must be an absolute path without . or ..")
	}
	fd, err := unix.Open(filepath.Dir(target), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("target: directory above it: %w", err)
	}
	return os.NewFile(uintptr(fd), filepath.Dir(target)), nil
}

// unmountTop takes away the topmost mount, if there is one.
func unmountTop(parent *os.File, target string) (bool, error) {
	f, err := openTarget(parent, target)
	if err != nil {
		return false, err
	}
	defer f.Close()
	mounted, err := ours(f, target)
	if err != nil || !mounted {
		return false, err
	}
	return true, detach(f)
}

// removeTarget removes the directory, if it is there and empty.
func removeTarget(parent *os.File, target string) error {
	err := unix.Unlinkat(int(parent.Fd()), filepath.Base(target), unix.AT_REMOVEDIR)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY):
		return taken(target, "the directory holds files that are not the volume's; remove them")
	case err != nil:
		return fmt.Errorf("target: rmdir: %w", err)
	}
	return nil
}
