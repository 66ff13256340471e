// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"errors"
	"fmt"
	"os"
	"regexp"

	"golang.org/x/sys/unix"
)

// ErrContext is for an SELinux context that this node does not take.
var ErrContext = errors.New("not known on this node")

// setContext gives all files of a file system that is being made an SELinux context. It is one string here, with the commas
// that mount(8) wants in quotes.
//
// Without SELinux the kernel looks for the option among those of the file system: tmpfs answers EINVAL and bpffs ignores it
// (bpf_parse_param in kernel/bpf/inode.c), so it is asked first.
func setContext(fs int, label string) error {
	on, err := selinux()
	switch {
	case err != nil:
		return err
	case !on:
		return fmt.Errorf("SELinux context %q: %w: SELinux is off; leave context= out of mountOptions", label, ErrContext)
	}
	err = unix.FsconfigSetString(fs, "context", label)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("SELinux context %q: %w: its SELinux policy has no such user, role, type or range; look at the pod's seLinuxOptions", label, ErrContext)
	}
	if err != nil {
		return fmt.Errorf("SELinux context: %w", err)
	}
	return nil
}

var selinuxfs = regexp.MustCompile(`(?m)\tselinuxfs$`)

// selinux tells whether the kernel runs SELinux. It then has a file system for it, which need not be mounted here.
func selinux() (bool, error) {
	text, err := os.ReadFile("/proc/filesystems")
	return selinuxfs.Match(text), err
}
