// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"

	"github.com/bpfvol/bpfvol/internal/host"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func cgroupProbes(node host.Process) []probe {
	caps := []capability{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_BPF}
	return []probe{
		{name: "cgroup", what: "hook cgroup", caps: caps, kernel: "CONFIG_CGROUP_BPF, version 5.7 or later", try: at(node, tryCgroup)},
	}
}

// tryCgroup attaches to a cgroup of its own without processes. It is made through a mount of its own: the one by which
// volumes name cgroups may be read-only here. And it is made in the cgroup of this process: that of the root is read-only to
// root without CAP_DAC_OVERRIDE.
func tryCgroup() (_ string, err error) {
	at, err := findCgroup2()
	if err != nil {
		return "", err
	}
	root, err := mountDetached("cgroup2")
	if err != nil {
		return "", err
	}
	defer root.Close()
	own, err := ownCgroup()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(within(root, own), "bpfvol-doctor-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	its := &volume.Cgroup{Path: filepath.Join(own, filepath.Base(dir)), Attach: "connect4"}
	return "connect4; cgroup2 is at " + at, atHook(returning(0, ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect), its)
}

// ownCgroup returns this process's cgroup, as the calling thread's cgroup namespace sees it (cgroups(7)).
func ownCgroup() (string, error) {
	text, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/"); ok {
			return filepath.Join(".", path), nil
		}
	}
	return ".", nil
}

// findCgroup2 returns where cgroup2 is mounted.
func findCgroup2() (string, error) {
	mounts, err := mount.ParseMountInfo("/proc/thread-self/mountinfo")
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.FsType == "cgroup2" {
			return m.MountPoint, nil
		}
	}
	return "", &problem{"cgroup2 is not mounted", "boot the node with cgroup v2, or mount it at /sys/fs/cgroup/unified"}
}
