// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsCookie returns the number of the calling thread's network namespace that no other namespace has until reboot.
func netnsCookie() (uint64, error) {
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

// inNetNS runs f in the network namespace with a cookie: at once if that is the calling thread's, else on a thread of
// its own that ends with it. found is false if no process and no mount holds the namespace: then it is gone, or about to.
func inNetNS(cookie uint64, f func() error) (found bool, err error) {
	here, err := netnsCookie()
	if err != nil {
		return false, err
	}
	if here == cookie {
		return true, f()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the runtime ends a thread whose namespace is unknown
		for _, path := range netnsPaths() {
			if enter(path) != nil {
				continue // gone since it was listed
			}
			if now, cookieErr := netnsCookie(); cookieErr == nil && now == cookie {
				found, err = true, f()
				return
			}
		}
	}()
	<-done
	return found, err
}

func enter(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
}

// netnsPaths lists a path of each network namespace that a process is in or a mount keeps.
func netnsPaths() []string {
	var paths, seen []string
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range processes {
		if inode, err := os.Readlink(path); err == nil && !slices.Contains(seen, inode) {
			paths, seen = append(paths, path), append(seen, inode)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[3], "net:[") && !slices.Contains(seen, f[3]) {
			paths, seen = append(paths, f[4]), append(seen, f[3])
		}
	}
	return paths
}
