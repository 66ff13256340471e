// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// cgroupTypes maps the attach types of cgroups, by the part of the ELF section name behind "cgroup", to the kernel's
// number and the program type (libbpf, section_defs).
var cgroupTypes = map[string]struct {
	attach ebpf.AttachType
	prog   ebpf.ProgramType
}{
	"skb/ingress":      {ebpf.AttachCGroupInetIngress, ebpf.CGroupSKB},
	"skb/egress":       {ebpf.AttachCGroupInetEgress, ebpf.CGroupSKB},
	"sock":             {ebpf.AttachCGroupInetSockCreate, ebpf.CGroupSock},
	"sock_create":      {ebpf.AttachCGroupInetSockCreate, ebpf.CGroupSock},
	"sock_release":     {ebpf.AttachCgroupInetSockRelease, ebpf.CGroupSock},
	"post_bind4":       {ebpf.AttachCGroupInet4PostBind, ebpf.CGroupSock},
	"post_bind6":       {ebpf.AttachCGroupInet6PostBind, ebpf.CGroupSock},
	"bind4":            {ebpf.AttachCGroupInet4Bind, ebpf.CGroupSockAddr},
	"bind6":            {ebpf.AttachCGroupInet6Bind, ebpf.CGroupSockAddr},
	"connect4":         {ebpf.AttachCGroupInet4Connect, ebpf.CGroupSockAddr},
	"connect6":         {ebpf.AttachCGroupInet6Connect, ebpf.CGroupSockAddr},
	"connect_unix":     {ebpf.AttachCgroupUnixConnect, ebpf.CGroupSockAddr},
	"sendmsg4":         {ebpf.AttachCGroupUDP4Sendmsg, ebpf.CGroupSockAddr},
	"sendmsg6":         {ebpf.AttachCGroupUDP6Sendmsg, ebpf.CGroupSockAddr},
	"sendmsg_unix":     {ebpf.AttachCgroupUnixSendmsg, ebpf.CGroupSockAddr},
	"recvmsg4":         {ebpf.AttachCGroupUDP4Recvmsg, ebpf.CGroupSockAddr},
	"recvmsg6":         {ebpf.AttachCGroupUDP6Recvmsg, ebpf.CGroupSockAddr},
	"recvmsg_unix":     {ebpf.AttachCgroupUnixRecvmsg, ebpf.CGroupSockAddr},
	"getpeername4":     {ebpf.AttachCgroupInet4GetPeername, ebpf.CGroupSockAddr},
	"getpeername6":     {ebpf.AttachCgroupInet6GetPeername, ebpf.CGroupSockAddr},
	"getpeername_unix": {ebpf.AttachCgroupUnixGetpeername, ebpf.CGroupSockAddr},
	"getsockname4":     {ebpf.AttachCgroupInet4GetSockname, ebpf.CGroupSockAddr},
	"getsockname6":     {ebpf.AttachCgroupInet6GetSockname, ebpf.CGroupSockAddr},
	"getsockname_unix": {ebpf.AttachCgroupUnixGetsockname, ebpf.CGroupSockAddr},
	"sysctl":           {ebpf.AttachCGroupSysctl, ebpf.CGroupSysctl},
	"getsockopt":       {ebpf.AttachCGroupGetsockopt, ebpf.CGroupSockopt},
	"setsockopt":       {ebpf.AttachCGroupSetsockopt, ebpf.CGroupSockopt},
	"dev":              {ebpf.AttachCGroupDevice, ebpf.CGroupDevice},
	"sockops":          {ebpf.AttachCGroupSockOps, ebpf.SockOps}, // section "sockops"
}

// CgroupType returns the kernel's attach type and program type for the field Attach of volume.Cgroup. Whole section
// names, "cgroup/connect4" and "cgroup_skb/egress", are understood too.
func CgroupType(name string) (ebpf.AttachType, ebpf.ProgramType, error) {
	short := strings.TrimPrefix(strings.TrimPrefix(name, "cgroup/"), "cgroup_")
	t, ok := cgroupTypes[short]
	if !ok {
		return 0, 0, &MissingError{What: "cgroup attach type", Name: name, Where: "there are", Known: slices.Collect(maps.Keys(cgroupTypes))}
	}
	return t.attach, t.prog, nil
}

func attachCgroup(prog *ebpf.Program, h *volume.Cgroup) (link.Link, error) {
	name := h.Attach
	if name == "" {
		var err error
		if name, err = onlyCgroupType(prog.Type()); err != nil {
			return nil, err
		}
	}
	attach, progType, err := CgroupType(name)
	if err != nil {
		return nil, err
	}
	if err := wantType(prog, progType); err != nil {
		return nil, err
	}
	dir, err := openCgroup(h.Path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// Not link.AttachCgroup: it may fall back to an attachment that has no owner and outlives its volume.
	raw, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: prog, Attach: attach})
	if err != nil {
		return nil, fmt.Errorf("cgroup %s %s: %w", quote(h.Path), name, err)
	}
	return raw, nil
}

// onlyCgroupType returns the attach type of a program whose type has just one.
func onlyCgroupType(t ebpf.ProgramType) (string, error) {
	var names []string
	for name, ct := range cgroupTypes {
		if ct.prog == t {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	switch len(names) {
	case 0:
		return "", fmt.Errorf("program is of type %s, which no cgroup runs", t)
	case 1:
		return names[0], nil
	}
	return "", fmt.Errorf("cgroup attach type is not given; a program of type %s can have: %s", t, strings.Join(names, ", "))
}

// openCgroup opens a cgroup by its path below the cgroup2 mount, or by its absolute path, which must lead there.
func openCgroup(path string) (*os.File, error) {
	mounts, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	mount, below := "", filepath.Clean(path)
	for _, m := range mounts {
		if !filepath.IsAbs(path) {
			mount = m
			break
		}
		rel, err := filepath.Rel(m, filepath.Clean(path))
		if err == nil && filepath.IsLocal(rel) && len(m) > len(mount) {
			mount, below = m, rel
		}
	}
	if mount == "" {
		return nil, &MissingError{What: "cgroup", Name: path, Where: "cgroup2 is mounted at", Known: mounts}
	}
	root, err := os.Open(mount)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir, err := openBeneath(root, below, unix.O_RDONLY|unix.O_DIRECTORY)
	if notThere(err) {
		return nil, &MissingError{What: "cgroup", Name: path, Where: "beside it are", Known: siblings(root, below)}
	} else if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", quote(path), err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		dir.Close()
		return nil, unfit("cgroup %s: not in the cgroup2 file system; name a cgroup of version 2", quote(path))
	}
	return dir, nil
}

// siblings lists the cgroups in the nearest parent of path that exists.
func siblings(root *os.File, path string) []string {
	for path != "." && filepath.IsLocal(path) {
		path = filepath.Dir(path)
		if dir, err := openBeneath(root, path, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
			defer dir.Close()
			return prefixed(strings.TrimPrefix(path+"/", "./"), dirNames(dir))
		}
	}
	return nil
}

// cgroupMounts lists where cgroup2 is mounted, mounts of the whole hierarchy first (proc_pid_mountinfo(5)).
func cgroupMounts() ([]string, error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var whole, part []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if dash < 5 || dash+1 >= len(fields) || fields[dash+1] != "cgroup2" {
			continue
		}
		// Space, tab, newline and backslash are written as \040 and so on.
		point, err := strconv.Unquote(`"` + strings.ReplaceAll(fields[4], `"`, `\"`) + `"`)
		if err != nil {
			return nil, fmt.Errorf("mountinfo: %q: %w", fields[4], err)
		}
		if fields[3] == "/" {
			whole = append(whole, point)
		} else {
			part = append(part, point)
		}
	}
	return append(whole, part...), nil
}
