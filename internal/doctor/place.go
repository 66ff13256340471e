// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/bpfvol/bpfvol/internal/host"
)

// initial are the namespaces that a machine starts with (include/linux/proc_ns.h). Those of mounts and networks had no fixed
// numbers before Linux 6.18.
var initial = map[string]string{"cgroup": "cgroup:[4026531835]", "pid": "pid:[4026531836]", "uts": "uts:[4026531838]", "ipc": "ipc:[4026531839]"}

// place says where volumes are mounted and programs attached.
func (p process) place() (string, error) {
	if p.host != "" {
		same := true
		err := p.host.Do(func() error {
			for _, name := range []string{"mnt", "net"} {
				here, _ := os.Readlink("/proc/self/ns/" + name)
				there, _ := os.Readlink("/proc/thread-self/ns/" + name)
				same = same && here == there
			}
			return nil
		})
		if err != nil {
			return "", err
		}
		if same {
			return fmt.Sprintf("the mount and network namespace of %s, which are this process's own", p.host), nil
		}
		return fmt.Sprintf("the mount and network namespace of %s; this process is in others", p.host), nil
	}
	if own := ownNamespaces(); len(own) > 0 {
		return "this process's own namespaces, in a container (not the machine's: " + strings.Join(own, ", ") + "): mounts reach the node by propagation alone, " +
			"and interfaces are those of hostNetwork alone; --host-process /proc/1 needs neither", nil
	}
	return "this machine's namespaces", nil
}

// at makes a check that looks at what is mounted look where the node is.
func at(node host.Process, try func() (string, error)) func() (string, error) {
	return func() (detail string, err error) {
		err = node.Do(func() (err error) {
			detail, err = try()
			return err
		})
		return detail, err
	}
}

// ownNamespaces lists those that this process does not share with the machine: containers always have some.
func ownNamespaces() []string {
	var own []string
	for name, first := range initial {
		if ns, err := os.Readlink("/proc/self/ns/" + name); err == nil && ns != first {
			own = append(own, name)
		}
	}
	slices.Sort(own)
	return own
}
