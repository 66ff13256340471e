// SPDX-License-Identifier: Apache-2.0

package bpftest

import "golang.org/x/sys/unix"

// GiveUp takes capabilities from the calling thread, which must end afterwards.
func GiveUp(capabilities ...uint) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	for _, c := range capabilities {
		sets[c/32].Effective &^= 1 << (c % 32)
	}
	return unix.Capset(&header, &sets[0])
}
