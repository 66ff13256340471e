// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// container is a process that sees a volume as one of a pod does: by a recursive bind mount, in a mount namespace of its
// own, and with hostUsers: false in a user namespace, for which the runtime idmaps the mount at the top (runc,
// libcontainer/mount_linux.go).
type container struct {
	user
	shifted bool // hostUsers: false
}

var (
	// app is a container's usual user: no name on the node, no capability.
	app = container{user: user{uid: 10001, gid: 10001}}
	// appMember has the pod's fsGroup.
	appMember = container{user: user{uid: 10001, gid: 10001, groups: []uint32{2000}}}
	appRoot   = container{user: root}

	shiftedApp       = container{user: app.user, shifted: true}
	shiftedAppMember = container{user: appMember.user, shifted: true}
	shiftedRoot      = container{user: root, shifted: true}
)

// String is how the container is told to a child.
func (c container) String() string {
	return fmt.Sprintf("%d %d %v %v", c.uid, c.gid, c.shifted, len(c.groups) > 0)
}

func parseContainer(s string) (c container) {
	var grouped bool
	if _, err := fmt.Sscan(s, &c.uid, &c.gid, &c.shifted, &grouped); err != nil {
		panic(err)
	}
	if grouped {
		c.groups = []uint32{2000}
	}
	return c
}

// in runs a child in a container that has the volume at target, and returns what it printed. Its argument is where it
// sees the volume, and path in there.
func in(t testing.TB, c container, target, what, path string) string {
	t.Helper()
	got := as(t, user{clone: syscall.CLONE_NEWNS}, "container", target, c.String(), what, path)
	if strings.HasPrefix(got, noIdmap) {
		t.Skip("this kernel cannot idmap a tmpfs, so it starts no pod with hostUsers: false (Linux 6.3 does): " + noIdmap)
	}
	return got
}

const noIdmap = "idmap: invalid argument"

// runContainer is the runtime: it makes the mounts, and starts the container's process.
func runContainer(target, who, what, path string) error {
	c := parseContainer(who)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.Mount("container", os.TempDir(), "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("file system of the container: %w", err)
	}
	dir := filepath.Join(os.TempDir(), "bpf")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", filepath.Join(dir, path))
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, os.Stdout, os.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.gid, Groups: c.groups}}
	if c.shifted {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}}
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("container: %w", err)
	}
	r.Close()
	if c.shifted {
		err = idmap(tree, cmd.Process.Pid)
	}
	if err == nil {
		err = unix.MoveMount(tree, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	w.Close() // the volume is there
	return cmd.Wait()
}

// idmap shifts the ids of a tree's top mount, and of no other, as those of a process are.
func idmap(tree, pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fmt.Errorf("idmap: %w", err)
	}
	return nil
}

// awaitVolume waits until the runtime has mounted the volume, where a runtime started this process.
func awaitVolume() { os.Stdin.Read(make([]byte, 1)) } //nolint:errcheck // the end of it is what is awaited
