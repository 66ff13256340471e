// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a lock that another holds is tried again. We hold it while the kernel swaps, 20 ms.
const lockPoll = 2 * time.Millisecond

// lock takes the lock that libxdp takes of its directory (xdp_lock_acquire in lib/libxdp/libxdp.c). Closing the file
// unlocks. libxdp holds it while it reads, makes or removes pins, but not while it swaps; we hold it all the time.
func (p Protocol) lock(ctx context.Context) (*os.File, error) {
	f, err := os.Open(p.dir())
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", p.dir(), err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another change of a dispatcher of libxdp: %w", context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// makeDir makes the directory that libxdp makes, too. It is never removed: a lock on a removed directory excludes nobody.
func (p Protocol) makeDir() error {
	if err := os.MkdirAll(p.dir(), 0o700); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(p.dir(), &fs); err == nil && fs.Type != unix.BPF_FS_MAGIC {
		os.Remove(p.dir()) // if it was made just now, or is as empty
		return fmt.Errorf("%s: not on a bpffs; mount one: mount -t bpf bpf /sys/fs/bpf", p.dir())
	}
	return nil
}
