// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrTargetPath is for a target that cannot be one, whatever is there.
	ErrTargetPath = errors.New("bad target path")
	// ErrTarget is for a target that something else has taken.
	ErrTarget = errors.New("target is taken")
)

// TargetError says why a target cannot be used. It wraps ErrTargetPath or ErrTarget. Its text does not hold the path,
// which differs from pod to pod.
type TargetError struct {
	Path string
	Msg  string
	Kind error
}

func (e *TargetError) Error() string { return "target: " + e.Msg }
func (e *TargetError) Unwrap() error { return e.Kind }

func taken(path, format string, args ...any) error {
	return &TargetError{Path: path, Msg: fmt.Sprintf(format, args...), Kind: ErrTarget}
}

func badPath(path, format string, args ...any) error {
	return &TargetError{Path: path, Msg: fmt.Sprintf(format, args...), Kind: ErrTargetPath}
}

// Check tells whether a volume may be published at target, which must be absolute and below root ("": anywhere). What is
// there may be nothing, an empty directory or a volume of ours; nothing below root may be a symlink. The error is a
// *TargetError.
func Check(target, root string) error {
	dir, err := openParent(target, root)
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := openTarget(dir, target)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if mounted, err := ours(f, target); mounted || err != nil {
		return err
	}
	return checkEmpty(f, target)
}

// openParent opens the directory that target is in.
func openParent(target, root string) (*os.File, error) {
	root = cmp.Or(root, "/")
	rel, err := filepath.Rel(root, target)
	switch {
	case !filepath.IsAbs(target), target != filepath.Clean(target):
		return nil, badPath(target, "must be an absolute path without . or ..")
	case err != nil, rel == ".", rel == "..", strings.HasPrefix(rel, "../"):
		return nil, badPath(target, "must lie below %s", root)
	}
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	top, err := unix.Open(root, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("target: %s: %w", root, err)
	}
	defer unix.Close(top)
	fd, err := unix.Openat2(top, filepath.Dir(rel), &unix.OpenHow{
		Flags:   flags,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, taken(target, "a directory above it is a symbolic link; name the directory that it leads to")
	case errors.Is(err, unix.ENOENT):
		return nil, taken(target, "the directory above it does not exist; create it")
	case errors.Is(err, unix.ENOTDIR):
		return nil, taken(target, "what is above it is not a directory")
	case err != nil:
		return nil, fmt.Errorf("target: directory above it: %w", err)
	}
	return os.NewFile(uintptr(fd), filepath.Dir(target)), nil
}

// openTarget opens the target itself, at the top of whatever is mounted there. The error is os.ErrNotExist if it is not
// there, and a *TargetError if it is no directory.
func openTarget(dir *os.File, target string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), filepath.Base(target), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	f := os.NewFile(uintptr(fd), target)
	info, err := f.Stat()
	switch {
	case err != nil:
		err = fmt.Errorf("target: %w", err)
	case info.Mode()&os.ModeSymlink != 0:
		err = taken(target, "it is a symbolic link; remove it")
	case !info.IsDir():
		err = taken(target, "it is a file, not a directory; remove it")
	default:
		return f, nil
	}
	f.Close()
	return nil, err
}

// source is what our tmpfs has as its source in mountinfo.
const source = "bpfvol"

// ours tells whether f is the root of a mount that we made. It is an error if f is the root of another one.
func ours(f *os.File, target string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return false, fmt.Errorf("target: %w", err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, nil
	}
	fsType, from, err := mountOf(st.Mnt_id)
	switch {
	case err != nil:
		return false, fmt.Errorf("target: %w", err)
	case fsType == "tmpfs" && from == source:
		return true, nil
	case fsType == "":
		return false, taken(target, "a file system that is not in mountinfo is mounted there; unmount it")
	}
	return false, taken(target, "a file system of type %.40q is mounted there; unmount it", fsType)
}

// mountOf returns type and source of a mount; no type if it is not in mountinfo. It reads no other mount's line: those are
// anybody's, and one that is odd must not keep every volume of the node from being published. (proc_pid_mountinfo(5);
// mount-utils refuses all lines where one mount has an empty source.)
func mountOf(id uint64) (fsType, from string, err error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo") // the node plugin's threads have different ones (package host)
	if err != nil {
		return "", "", err
	}
	prefix := strconv.FormatUint(id, 10) + " "
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		// White space in paths is escaped, so this ends the optional fields.
		_, tail, _ := strings.Cut(line, " - ")
		fsType, tail, _ = strings.Cut(tail, " ")
		from, _, _ = strings.Cut(tail, " ")
		return fsType, from, nil
	}
	return "", "", nil
}

func checkEmpty(f *os.File, target string) error {
	fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	dir := os.NewFile(uintptr(fd), target)
	defer dir.Close()
	if names, _ := dir.Readdirnames(1); len(names) > 0 {
		return taken(target, "the directory is not empty; remove what is in it")
	}
	return nil
}
