// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/host"
)

func bpffsProbes(node host.Process) []probe {
	admin := []capability{unix.CAP_SYS_ADMIN, unix.CAP_BPF}
	return []probe{
		{name: "bpffs", what: "everything: pins, and the maps/ of volumes", needed: true, caps: append(admin, unix.CAP_CHOWN), kernel: "CONFIG_BPF_SYSCALL, version 5.2 or later", try: at(node, tryBPFFS)},
		{name: "bpffsReadOnly", what: "maps/ that no pod can write to", needed: true, caps: admin, kernel: "CONFIG_BPF_SYSCALL, version 5.8 or later", try: tryReadOnly},
		{name: "bpffsWritable", what: "rw/, for maps that pods write", caps: admin, kernel: "CONFIG_BPF_SYSCALL, version 5.12 or later", try: tryWritable},
		{name: "readers", what: "pods that read maps/ with bpf(2) and no privilege", caps: admin, kernel: "version 5.19 or later, or kernel.unprivileged_bpf_disabled=0", try: tryReaders},
		{name: "token", what: "nothing yet: pods that load programs of their own", caps: admin, kernel: "CONFIG_BPF_SYSCALL, version 6.9 or later", try: tryToken},
	}
}

// pinned mounts a bpffs with a map pinned in it. The caller closes it.
func pinned(options ...string) (_ *os.File, path string, err error) {
	root, err := mountDetached("bpf", options...)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			root.Close()
		}
	}()
	m, err := newMap(ebpf.Array)
	if err != nil {
		return nil, "", err
	}
	defer m.Close()
	path = within(root, "map")
	if err := m.Pin(path); err != nil {
		return nil, "", err
	}
	return root, path, nil
}

func tryBPFFS() (string, error) {
	const nobody = 65534
	root, path, err := pinned("mode", "0750", "gid", fmt.Sprint(nobody))
	if err != nil {
		return "", err
	}
	defer root.Close()
	// As bpfvol sets the mode of every pin, and the group of what is beside: those of the mount are not inherited.
	if err := errors.Join(os.Chown(path, 0, nobody), os.Chmod(path, 0o440)); err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return "", err
	}
	detail := "pins can be made anybody's; mount options mode and gid work"
	if st.Mode&0o777 != 0o750 || st.Gid != nobody {
		detail = "pins can be made anybody's; the kernel ignores some of the mount options mode and gid, on which bpfvol does not rely"
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/bpf", &fs); err != nil || fs.Type != unix.BPF_FS_MAGIC {
		detail += "; none is mounted at /sys/fs/bpf, which bpfvol does at its first start"
	}
	return detail, nil
}

// tryReadOnly remounts the file system itself read-only: a read-only mount of it stops nobody from writing to a map.
func tryReadOnly() (string, error) {
	root, path, err := pinned()
	if err != nil {
		return "", err
	}
	defer root.Close()
	config, err := unix.Fspick(int(root.Fd()), "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("fspick: %w", err)
	}
	defer unix.Close(config)
	if err := errors.Join(unix.FsconfigSetFlag(config, "ro"), unix.FsconfigReconfigure(config)); err != nil {
		return "", fmt.Errorf("remount: %w", err)
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		m.Close()
		return "", &problem{"a pin on a read-only bpffs can still be opened for writing", "a kernel that refuses it with EROFS"}
	} else if !errors.Is(err, unix.EROFS) {
		return "", err
	}
	m, err = ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return "", err
	}
	return "pins can be read, and not written to", m.Close()
}

// tryWritable opens a map for writing through a read-only mount, which keeps the pin from being removed.
func tryWritable() (string, error) {
	root, path, err := pinned()
	if err != nil {
		return "", err
	}
	defer root.Close()
	if err := unix.MountSetattr(int(root.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return "", fmt.Errorf("mount_setattr: %w", err)
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return "", err
	}
	if err := errors.Join(m.Put(uint32(0), uint64(1)), m.Close()); err != nil {
		return "", err
	}
	if err := os.Remove(path); !errors.Is(err, unix.EROFS) {
		return "", &problem{"a pin on a read-only mount can be removed", "a kernel that refuses it with EROFS"}
	}
	return "pins can be written to, and not removed", nil
}

// tryReaders reads a pinned map as a pod would, without a single capability.
func tryReaders() (string, error) {
	root, path, err := pinned()
	if err != nil {
		return "", err
	}
	defer root.Close()
	// This thread's alone (capset(2)), and it ends with the check.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	none := [2]unix.CapUserData{}
	if err := unix.Capset(&header, &none[0]); err != nil {
		return "", fmt.Errorf("give up capabilities: %w", err)
	}
	var value uint64
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err == nil {
		err = errors.Join(m.Lookup(uint32(0), &value), m.Close())
	}
	setting := unprivileged()
	if errors.Is(err, unix.EPERM) {
		return "", &problem{oneLine(err) + " without capabilities; " + setting,
			"let pods read json/ instead; or a kernel of version 5.19 or later, or kernel.unprivileged_bpf_disabled=0"}
	} else if err != nil {
		return "", err
	}
	return setting + "; reading a pinned map needs no capability, only a seccomp profile that allows bpf(2)", nil
}

// unprivileged says what kernel.unprivileged_bpf_disabled (sysctl/kernel.rst) means.
func unprivileged() string {
	const name = "kernel.unprivileged_bpf_disabled"
	value, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled")
	if err != nil {
		return name + " cannot be read"
	}
	switch v := strings.TrimSpace(string(value)); v {
	case "0":
		return name + " is 0: anyone may load programs"
	case "1":
		return name + " is 1: loading needs CAP_BPF, until the next boot"
	default:
		return name + " is " + v + ": loading needs CAP_BPF"
	}
}

// tryToken asks for a token of a bpffs that delegates. The kernel gives none in its first user namespace, and says so
// in words of its own only if it knows tokens (kernel/bpf/token.c, bpf_token_create).
func tryToken() (string, error) {
	root, err := mountDetached("bpf", "delegate_cmds", "any", "delegate_maps", "any", "delegate_progs", "any", "delegate_attachs", "any")
	if err != nil {
		return "", err
	}
	defer root.Close()
	dir, err := os.Open(within(root, ".")) // a mount's own descriptor is for paths only
	if err != nil {
		return "", err
	}
	defer dir.Close()
	const tokenCreate = 36                                     // BPF_TOKEN_CREATE
	attr := struct{ flags, bpffs uint32 }{0, uint32(dir.Fd())} // union bpf_attr, token_create
	fd, _, errno := unix.Syscall(unix.SYS_BPF, tokenCreate, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	switch errno {
	case 0:
		return "given to this process, which is in a user namespace", unix.Close(int(fd))
	case unix.EOPNOTSUPP:
		return "for pods in user namespaces of their own; none in the node's, by design", nil
	case unix.EPERM: // to who has not CAP_BPF itself; CAP_SYS_ADMIN does not stand for it here
		return "", &problem{"create a token: operation not permitted", "none is needed: bpfvol uses no token"}
	}
	return "", fmt.Errorf("create a token: %w", errno)
}
