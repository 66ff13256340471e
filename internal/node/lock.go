// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// locks hands out one try-lock per volume. It is an flock, so it holds between processes as well: `bpfvol run`
// beside the daemon, and an old daemon that is still on its way out.
type locks struct{ dir string }

// try locks a volume by its file name, or returns ErrBusy at once. The caller must call unlock.
func (l locks) try(name string) (unlock func(), err error) {
	path := filepath.Join(l.dir, name)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w; look at the node plugin's state directory", withoutPath(err))
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("volume: %w; it will be tried again", ErrBusy)
			}
			return nil, fmt.Errorf("lock: %w", err)
		}
		// The holder before us removes its file. A lock on a removed file excludes nobody: take the new one.
		if same(f, path) {
			return func() {
				os.Remove(path)
				f.Close()
			}, nil
		}
		f.Close()
	}
}

// within is try for somebody whose turn comes soon: it tries again until a time is over. It asks again and again because
// a wait inside flock(2) cannot be given up.
func (l locks) within(ctx context.Context, patience time.Duration, name string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		unlock, err := l.try(name)
		if !errors.Is(err, ErrBusy) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// sweep removes the files of lock holders that died.
func (l locks) sweep() error {
	names, err := entryNames(l.dir)
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	for _, name := range names {
		if unlock, err := l.try(name); err == nil {
			unlock()
		}
	}
	return nil
}

func same(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(held, named)
}
