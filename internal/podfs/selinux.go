// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrContext is for an SELinux context that this node does not take.
var ErrContext = errors.New("not known on this node")

// containerFiles is the context that every container may use. Without one of its own a volume would be labelled by who starts
// the container, which fails as it is read-only (kubelet asks for that where a mount has the option seclabel, and passes a
// context on for PersistentVolumes alone: GetSELinux in pkg/volume/util/hostutil, VolumeSupportsSELinuxMount in
// pkg/volume/util).
const containerFiles = "system_u:object_r:container_file_t:s0"

// label is the SELinux context of a volume's files.
type label struct {
	context string // "": SELinux is off
	asked   bool   // for this volume
}

// labelOf returns what Content.Context asks for, or else what suits all.
//
// Without SELinux the kernel looks for the option context among those of the file system: tmpfs answers EINVAL and bpffs
// ignores it (bpf_parse_param in kernel/bpf/inode.c). So it is not left to them.
func labelOf(context string) (label, error) {
	on, err := selinux()
	switch {
	case err != nil:
		return label{}, err
	case on && context == "":
		return label{context: containerFiles}, nil
	case on || context == "":
		return label{context: context, asked: true}, nil
	}
	return label{}, fmt.Errorf("SELinux context %q: %w: SELinux is off; leave context= out of mountOptions", context, ErrContext)
}

// set gives all files of a file system that is being made the context. It is one string here, with the commas that mount(8)
// wants in quotes.
func (l label) set(fs int) error {
	if l.context == "" {
		return nil
	}
	err := unix.FsconfigSetString(fs, "context", l.context)
	switch {
	case !errors.Is(err, unix.EINVAL):
		return err
	case !l.asked: // a policy without containers
		return nil
	}
	return fmt.Errorf("SELinux context %q: %w: its SELinux policy has no such user, role, type or range; look at the pod's seLinuxOptions", l.context, ErrContext)
}

var selinuxfs = regexp.MustCompile(`(?m)\tselinuxfs$`)

// selinux tells whether the kernel runs SELinux and has a policy: before that, every process is just "kernel".
func selinux() (bool, error) {
	// Its file system is known, though it need not be mounted here.
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !selinuxfs.Match(known) {
		return false, err
	}
	self, err := os.ReadFile("/proc/thread-self/attr/current")
	return strings.Contains(string(self), ":"), err
}
