// SPDX-License-Identifier: Apache-2.0

// Package netns tells network namespaces apart.
package netns

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Cookie returns the number of the calling thread's network namespace that no other namespace has until reboot, unlike
// its inode number.
func Cookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: %w", err)
	}
	return cookie, nil
}
