// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/host"
	"github.com/bpfvol/bpfvol/internal/privilege"
)

// process is what the kernel goes by when it decides what this process may do.
type process struct {
	host            host.Process
	caps            uint64 // effective
	seccomp         bool   // a filter is on
	inUserNamespace bool
	lockdown        string   // "none", "integrity", "confidentiality"; "" if the kernel has no lockdown
	lockdownErr     error    // it could not be read
	modules         []string // active security modules beside capability and lockdown, as far as they can be read
}

func thisProcess() process {
	var p process
	// A missing line leaves the zero value: no capability, which the first check reports.
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); key {
		case "CapEff":
			p.caps, _ = strconv.ParseUint(value, 16, 64)
		case "Seccomp":
			p.seccomp = value != "0"
		}
	}
	// The initial user namespace maps every id to itself (user_namespaces(7)).
	if ids, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		p.inUserNamespace = strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295"
	}
	state, err := readSecurity("lockdown") // "none [integrity] confidentiality"
	if !errors.Is(err, os.ErrNotExist) {
		p.lockdownErr = err
	}
	if _, after, ok := strings.Cut(state, "["); ok {
		p.lockdown, _, _ = strings.Cut(after, "]")
	}
	modules, _ := hook.SecurityModules()
	for _, name := range modules {
		if name != "capability" && name != "lockdown" {
			p.modules = append(p.modules, name)
		}
	}
	return p
}

// readSecurity reads a file of securityfs, which need not be mounted.
func readSecurity(name string) (string, error) {
	text, err := os.ReadFile("/sys/kernel/security/" + name)
	if errors.Is(err, os.ErrNotExist) {
		root, mountErr := mountDetached("securityfs")
		if errors.Is(mountErr, unix.ENODEV) {
			return "", err // no such file system: no security modules
		} else if mountErr != nil {
			return "", mountErr
		}
		defer root.Close()
		text, err = os.ReadFile(within(root, name))
	}
	return strings.TrimSpace(string(text)), err
}

// capability is one of capabilities(7).
type capability uint

var capabilityNames = map[capability]string{
	unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_BPF: "CAP_BPF", unix.CAP_PERFMON: "CAP_PERFMON",
	unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_CHOWN: "CAP_CHOWN",
	unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE", unix.CAP_SYS_CHROOT: "CAP_SYS_CHROOT",
}

// hostCapabilities are what entering the node's namespaces takes.
var hostCapabilities = []capability{unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_SYS_CHROOT}

// lacks returns those of wanted that the process has not.
func (p process) lacks(wanted []capability) []capability {
	has := func(c capability) bool { return p.caps&(1<<c) != 0 }
	var lacks []capability
	for _, c := range wanted {
		// CAP_BPF and CAP_PERFMON were split off CAP_SYS_ADMIN, which still stands for them (capabilities(7)).
		partOfAdmin := c == unix.CAP_BPF || c == unix.CAP_PERFMON
		if !has(c) && !(partOfAdmin && has(unix.CAP_SYS_ADMIN)) {
			lacks = append(lacks, c)
		}
	}
	return lacks
}

func names(caps []capability) string {
	var list []string
	for _, c := range caps {
		list = append(list, capabilityNames[c])
	}
	return strings.Join(list, ", ")
}

func (p process) identity() (string, error) {
	who := fmt.Sprintf("uid %d", os.Geteuid())
	if p.inUserNamespace {
		who += " in a user namespace"
	}
	if p.seccomp {
		who += ", under a seccomp filter"
	}
	inContainer := p.host != ""
	if lacks := privilege.Missing(inContainer); len(lacks) > 0 {
		return "", &problem{who + " has no " + privilege.Names(lacks), "run as root, or in a pod with these capabilities"}
	}
	return who + ", with " + privilege.Names(privilege.Needed(inContainer)), nil
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s %s", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]),
		unix.ByteSliceToString(u.Machine[:])), nil
}

func (p process) lockdownState() (string, error) {
	switch {
	case p.lockdownErr != nil:
		return "", &problem{"its state cannot be read: " + oneLine(p.lockdownErr), "run as root"}
	case p.lockdown == "":
		return "none: the kernel has no lockdown", nil
	case p.lockdown == "confidentiality":
		return "", &problem{"confidentiality: the kernel refuses programs that read its memory", "boot the node without lockdown=confidentiality"}
	}
	return p.lockdown, nil
}
