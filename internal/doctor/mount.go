// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// mountDetached mounts a file system where no path leads. Options are pairs of key and value. The mount ends when the
// caller closes it.
func mountDetached(fsType string, options ...string) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mount %s: %w", fsType, err)
		}
	}()
	config, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(config)
	for i := 0; i+1 < len(options); i += 2 {
		if err := unix.FsconfigSetString(config, options[i], options[i+1]); err != nil {
			return nil, fmt.Errorf("option %s=%s: %w", options[i], options[i+1], err)
		}
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), fsType), nil
}

// within is the path by which this process reaches a file of such a mount.
func within(root *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(root.Fd())) + "/" + name
}
