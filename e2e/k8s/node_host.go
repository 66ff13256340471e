// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mount makes the node's file system of the machine's. It runs in the new mount namespace, so the machine sees none of it.
func (n *Node) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := dropBPFFS(); err != nil {
		return err
	}
	for _, m := range []struct {
		fs, at, data string
	}{
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"tmpfs", "/var/lib", "mode=755"},
		{"tmpfs", "/var/log", "mode=755"},
		{"bpf", "/sys/fs/bpf", "mode=700"},
	} {
		if err := unix.Mount(m.fs, m.at, m.fs, 0, m.data); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.fs, m.at, err)
		}
	}
	// Certificates and names are the machine's, and what a pod adds by a hostPath is not.
	for _, dir := range []string{"/run/etc/upper", "/run/etc/work"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work"); err != nil {
		return fmt.Errorf("mount an overlay at /etc: %w", err)
	}
	if err := bind(n.file("kubelet"), "/var/lib/kubelet"); err != nil {
		return err
	}
	// As systemd does: what a pod mounts with bidirectional propagation is to be seen by the others.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

func bind(from, to string) error {
	for _, dir := range []string{from, to} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

// dropBPFFS unmounts the machine's, whose copies would keep alive what is pinned there after its owner has unmounted it.
func dropBPFFS() error {
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if !strings.Contains(line, " - bpf ") {
			continue
		}
		// Where its owner removes the directory meanwhile, the mount has gone along.
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", fields[4], err)
		}
	}
	return nil
}

// cgroupRoots are where each hierarchy is mounted that this process may use: one of cgroup2, or several of version 1.
func cgroupRoots() ([]string, error) {
	const root = "/sys/fs/cgroup"
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{root}, nil
	}
	procs, err := filepath.Glob(root + "/*/cgroup.procs")
	for i, file := range procs {
		procs[i] = filepath.Dir(file)
	}
	return procs, err
}

// makeCgroups makes the cgroup of the node's pods in each hierarchy.
func (n *Node) makeCgroups() error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	n.cgroup = cgroupOf(n.dir)
	for _, root := range roots {
		dir := filepath.Join(root, n.cgroup)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		// A cpuset of version 1 takes no process before it has these.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			all, err := os.ReadFile(filepath.Join(root, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, file), all, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// cgroupOf is the name of the cgroup of the node in dir.
func cgroupOf(dir string) string { return "bpfvol-e2e-" + filepath.Base(dir) }

// removeCgroups removes a cgroup with all below it from each hierarchy. The kernel may still be freeing what ended in it.
func removeCgroups(name string) error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			if err = removeCgroup(filepath.Join(root, name)); err == nil {
				break
			}
			if time.Since(start) > 10*time.Second {
				return err
			}
		}
	}
	return nil
}

// removeCgroup removes the cgroups below first.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

const lockFile = "lock"

// claim says that the directory is in use until the file is closed.
func claim(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return f, nil
}

// removeDead removes what nodes left whose process was killed. Whatever it cannot remove is in nobody's way.
func removeDead() {
	locks, _ := filepath.Glob(filepath.Join(os.TempDir(), "k8s-*", lockFile))
	for _, lock := range locks {
		dir := filepath.Dir(lock)
		f, err := claim(dir)
		if err != nil {
			continue // it lives
		}
		if removeCgroups(cgroupOf(dir)) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}
