// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// systemBPFFS is where systemd and every BPF tool expect the machine's bpffs.
const systemBPFFS = "/sys/fs/bpf"

// ensurePins makes the directory of volumes' pins; that of points is the dispatcher's. It is quick where it is there, and each
// publish calls it: somebody may have unmounted the bpffs, and what is new must not wait for a restart.
func ensurePins(dir string) error {
	if err := ensureBPFFS(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "volumes"), 0o700); err != nil {
		return fmt.Errorf("pins: %w", err)
	}
	return nil
}

// ensureBPFFS makes dir a directory on a bpffs. Where there is no bpffs yet, one is mounted: at /sys/fs/bpf for a
// directory below it, as systemd would have done, else at dir itself. It stays mounted: pins live in it.
func ensureBPFFS(dir string) error {
	mountpoint := dir
	if strings.HasPrefix(dir, systemBPFFS+"/") {
		mountpoint = systemBPFFS
	}
	on, err := onBPFFS(dir)
	if err != nil {
		return err
	}
	if !on {
		if mountpoint == dir {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return fmt.Errorf("pins: %w", err)
			}
		}
		if err := unix.Mount("bpf", mountpoint, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("pins: mount a bpffs at %s: %w; needs root and a kernel with CONFIG_BPF_SYSCALL", mountpoint, err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pins: %w", err)
	}
	return nil
}

// onBPFFS says whether dir, or the nearest directory above it that exists, lies on a bpffs.
func onBPFFS(dir string) (bool, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return st.Type == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			return false, fmt.Errorf("pins: %s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
}

// tryBPF makes a map and lets it go. Package ebpf keeps for the life of the process what it finds out at its first call, also
// that it had no memory or descriptor for that: a daemon would then load nothing more. Better to end at once, and be started
// again.
func tryBPF() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "bpfvol_try", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("BPF: %w; needs root and a kernel with CONFIG_BPF_SYSCALL", err)
	}
	return m.Close()
}
