// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Mounted tells whether target has a volume that Mount completed.
func Mounted(target string) (bool, error) {
	f, err := open(target)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrTarget) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	v, err := readVolume(f)
	if err != nil || v.Version != version {
		return false, nil //nolint:nilerr // not one that Mount completed
	}
	for _, dir := range v.dirs() {
		if ok, err := isReadOnly(f, dir, unix.BPF_FS_MAGIC); !ok || err != nil {
			return false, err
		}
	}
	if v.writable() {
		return isReadOnly(f, dirWritable, unix.BPF_FS_MAGIC)
	}
	return true, nil
}

// Read returns what volume.json of a mounted volume says. The error is os.ErrNotExist where none is mounted.
func Read(target string) (Volume, error) {
	f, err := open(target)
	if err != nil {
		return Volume{}, err
	}
	defer f.Close()
	return readVolume(f)
}

// Stats counts the pins of a volume: its maps, also as those that can be written, their JSON files and its iterators.
func Stats(target string) (pins int, err error) {
	f, err := open(target)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	v, err := readVolume(f)
	if err != nil {
		return 0, err
	}
	dirs := v.dirs()
	if v.writable() {
		dirs = append(dirs, dirWritable)
	}
	for _, name := range dirs {
		fd, err := unix.Openat(int(f.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		dir := os.NewFile(uintptr(fd), name)
		names, err := dir.Readdirnames(-1)
		dir.Close()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		pins += len(names)
	}
	return pins, nil
}

// open opens a target that shows a volume. The error is os.ErrNotExist where none is mounted: a container that starts then
// gets the bare directory, and may have made a pipe of volume.json or a symlink of maps.
func open(target string) (*os.File, error) {
	parent, err := openAbove(target)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	f, err := openTarget(parent, target)
	if err != nil {
		return nil, err
	}
	ok, err := isReadOnly(f, ".", unix.TMPFS_MAGIC)
	if err == nil && !ok {
		err = fmt.Errorf("target: no volume is mounted there: %w", os.ErrNotExist)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// isReadOnly tells whether a directory is on a read-only file system of this type.
func isReadOnly(f *os.File, name string, fsType int64) (bool, error) {
	fd, err := unix.Openat(int(f.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return st.Type == fsType && st.Flags&unix.ST_RDONLY != 0, nil
}

func readVolume(f *os.File) (v Volume, err error) {
	fd, err := unix.Openat(int(f.Fd()), fileVolume, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Volume{}, fmt.Errorf("%s: %w", fileVolume, err)
	}
	file := os.NewFile(uintptr(fd), fileVolume)
	defer file.Close()
	const limit = 1 << 20 // by the limits on attributes, far more than is written
	data, err := io.ReadAll(io.LimitReader(file, limit))
	if err != nil {
		return Volume{}, fmt.Errorf("%s: %w", fileVolume, err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return Volume{}, fmt.Errorf("%s: %w", fileVolume, err)
	}
	return v, nil
}
