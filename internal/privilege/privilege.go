// SPDX-License-Identifier: Apache-2.0

// Package privilege says which capabilities the node plugin needs and why, and gives up all others. A pod is given
// the same list (TestDocumentGivesWhatIsNeeded); on a host, or in a privileged pod, the process starts with all of them.
//
// Invariants:
//   - the daemon has these and no other, in no thread and in no set (TestDaemonKeepsOnlyWhatItNeeds);
//   - with these it does everything that it is for, and without any one of them it does not
//     (TestEveryCapabilityIsNeeded).
package privilege

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Capability is one that the node plugin needs.
type Capability struct {
	Value cap.Value
	Why   string

	inContainer bool // only a node plugin that is not in the namespaces of its node needs it
}

var needed = []Capability{
	{Value: cap.SYS_ADMIN, Why: "mount volumes, load and find BPF programs, enter the node's namespaces"},
	{Value: cap.NET_ADMIN, Why: "attach tc programs before Linux 6.6, by netlink"},
	{Value: cap.SYS_PTRACE, Why: "open the namespaces of the node, and those that an interface moved to, in /proc"},
	{Value: cap.SYS_CHROOT, Why: "enter the node's mount namespace, which has a root directory of its own", inContainer: true},
	{Value: cap.SYSLOG, Why: "read the addresses of kernel symbols, for programs that name them (__ksym) and offsets of kprobes"},
	{Value: cap.CHOWN, Why: "give a volume's files to the pod's fsGroup"},
}

// Needed returns every capability that the node plugin keeps. inContainer says that it is not in the namespaces of its node.
//
// Not among them: CAP_BPF and CAP_PERFMON, since the kernel asks for these or CAP_SYS_ADMIN (bpf_token_capable in
// kernel/bpf/token.c, perfmon_capable in include/linux/capability.h), and mounting takes the latter; CAP_FOWNER and
// CAP_DAC_OVERRIDE, since what it writes to is root's and so is it; CAP_DAC_READ_SEARCH, without which a binary that root may
// not read cannot be probed, and with which it could read every file of the node; CAP_SYS_RESOURCE, which Linux before 5.11
// wants for large maps.
func Needed(inContainer bool) []Capability {
	return slices.DeleteFunc(slices.Clone(needed), func(c Capability) bool { return c.inContainer && !inContainer })
}

// Names are the names of capabilities, as in capabilities(7).
func Names(all []Capability) string {
	var names []string
	for _, c := range all {
		names = append(names, strings.ToUpper(c.Value.String()))
	}
	return strings.Join(names, ", ")
}

// Missing returns those that are needed and that this process has not.
func Missing(inContainer bool) []Capability {
	have := cap.GetProc()
	return slices.DeleteFunc(Needed(inContainer), func(c Capability) bool {
		has, err := have.GetFlag(cap.Effective, c.Value)
		return err == nil && has
	})
}

// Drop gives up, for every thread, each capability that is not needed, and sees to it that no program that this process may
// start gets one again.
func Drop(inContainer bool) error {
	have, keep := cap.GetProc(), cap.NewSet()
	var kept []cap.Value
	for _, c := range Needed(inContainer) {
		has, err := have.GetFlag(cap.Permitted, c.Value)
		if err != nil {
			return fmt.Errorf("capabilities: %w", err)
		}
		if has {
			kept = append(kept, c.Value)
		}
	}
	for _, set := range []cap.Flag{cap.Permitted, cap.Effective} {
		if err := keep.SetFlag(set, true, kept...); err != nil {
			return fmt.Errorf("capabilities: %w", err)
		}
	}
	if err := bound(have, kept); err != nil {
		return err
	}
	if err := cap.ResetAmbient(); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	if err := keep.SetProc(); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	return nil
}

// bound reduces the bounding set. That takes CAP_SETPCAP, which a pod with exactly these capabilities has not and does not
// need: its runtime made the same set of them.
func bound(have *cap.Set, kept []cap.Value) error {
	if may, err := have.GetFlag(cap.Effective, cap.SETPCAP); !may || err != nil {
		return nil
	}
	for c := range cap.MaxBits() {
		if slices.Contains(kept, c) {
			continue
		}
		if err := cap.DropBound(c); err != nil {
			return fmt.Errorf("bounding set: %s: %w", c, err)
		}
	}
	return nil
}
