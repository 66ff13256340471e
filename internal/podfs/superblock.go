// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// superblock is a file system that nobody sees until it is attached.
type superblock struct {
	fsType string
	root   *os.File
}

// newSuperblock makes a file system. The caller must close root; if it was not attached, the file system then goes.
func newSuperblock(fsType string, o owner, l label, options map[string]string) (_ *superblock, err error) {
	defer func() {
		if err != nil && !errors.Is(err, ErrContext) {
			err = fmt.Errorf("mount %s: %w", fsType, err)
		}
	}()
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	for key, value := range options {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return nil, fmt.Errorf("option %s: %w", key, err)
		}
	}
	if err := l.set(fs); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, mountFlags(fsType))
	if err != nil {
		return nil, err
	}
	s := &superblock{fsType: fsType, root: os.NewFile(uintptr(fd), fsType)}
	// Not by mount options: Linux before 6.8 ignores uid and gid of a bpffs.
	if err := s.own(".", o.gid, o.dir); err != nil {
		s.root.Close()
		return nil, err
	}
	return s, nil
}

// mountFlags are those of a mount. The tmpfs, which is the target itself, has none: in a pod with a user namespace nobody can
// take flags away, so runc, which wants others, would read them back, find the file system read-only beside them, and start
// no container. It is read-only with nothing to execute in it, and runc would replace the flags in any other pod.
func mountFlags(fsType string) int {
	if fsType == "tmpfs" {
		return 0
	}
	return unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
}

func (s *superblock) fd() int { return int(s.root.Fd()) }

// path is where a name of the file system is found while it is not attached.
func (s *superblock) path(name string) string {
	return "/proc/self/fd/" + strconv.Itoa(s.fd()) + "/" + name
}

// own sets group and mode of a name that is there. The mode comes last: chown clears bits of it.
func (s *superblock) own(name string, gid int, mode uint32) error {
	if err := unix.Fchownat(s.fd(), name, 0, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown %s: %w", name, err)
	}
	if err := unix.Fchmodat(s.fd(), name, mode, 0); err != nil {
		return fmt.Errorf("chmod %s: %w", name, err)
	}
	return nil
}

func (s *superblock) mkdir(name string, o owner) error {
	if err := unix.Mkdirat(s.fd(), name, 0o700); err != nil {
		return fmt.Errorf("mkdir %s: %w", name, err)
	}
	return s.own(name, o.gid, o.dir)
}

func (s *superblock) write(name string, data []byte, o owner) error {
	fd, err := unix.Openat(s.fd(), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return s.own(name, o.gid, o.file)
}

// freeze makes the superblock read-only. A read-only mount of a writable one does not keep anybody from opening a map
// for writing; a read-only superblock does, root too.
func (s *superblock) freeze() error {
	fs, err := unix.Fspick(s.fd(), "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("make %s read-only: %w", s.fsType, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return fmt.Errorf("make %s read-only: %w", s.fsType, err)
	}
	if err := unix.FsconfigReconfigure(fs); err != nil {
		return fmt.Errorf("make %s read-only: %w", s.fsType, err)
	}
	return nil
}

// lock makes the mount read-only, and every copy of it, but not the superblock.
func (s *superblock) lock() error {
	err := unix.MountSetattr(s.fd(), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return fmt.Errorf("make the mount of %s read-only: %w", s.fsType, err)
	}
	return nil
}

// attach puts the file system on a directory.
func (s *superblock) attach(dir int) error {
	if err := move(s.fd(), dir); err != nil {
		return fmt.Errorf("attach %s: %w", s.fsType, err)
	}
	return nil
}

// parts attaches the file system for a moment and returns directories of it as trees of their own, not attached.
// Linux before 6.15 clones no part of a tree that is not attached. The caller must close them.
func (s *superblock) parts(dir int, names ...string) (parts []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(parts)
		}
	}()
	if err := s.attach(dir); err != nil {
		return nil, err
	}
	for _, name := range names {
		fd, cloneErr := unix.OpenTree(s.fd(), name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if cloneErr != nil {
			err = errors.Join(err, fmt.Errorf("clone %s of %s: %w", name, s.fsType, cloneErr))
			continue
		}
		parts = append(parts, os.NewFile(uintptr(fd), name))
	}
	return parts, errors.Join(err, s.detach())
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func move(tree, dir int) error {
	return unix.MoveMount(tree, "", dir, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// detach takes the file system away again, with what is mounted on it, though files of it be open.
func (s *superblock) detach() error { return detach(s.root) }

// detach unmounts what f is the root of.
func detach(f *os.File) error {
	if err := unix.Unmount("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}
