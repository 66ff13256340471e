// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/pin"
)

// ownDir is the directory, below that of the protocol, whose flock a change of ours holds from its begin to its end,
// and which has the intents. It stays when it is empty: a lock on a removed directory excludes nobody.
const ownDir = "bpfvol"

// begin keeps other changes of ours away and settles what was cut short. Closing the file lets them in.
func (p Protocol) begin(ctx context.Context, ifindex int) (*os.File, error) {
	if err := os.Mkdir(filepath.Join(p.dir(), ownDir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	own, err := lock(ctx, filepath.Join(p.dir(), ownDir))
	if err != nil {
		return nil, err
	}
	if err := p.settleAll(ctx, ifindex); err != nil {
		own.Close()
		return nil, err
	}
	return own, nil
}

// locked does something to pins under the lock of the protocol (xdp_lock_acquire in lib/libxdp/libxdp.c), which is to
// be held shortly, and never over a swap: libxdp asks for the interface's program before it asks for the lock, and
// gives up if the pins of that program are gone when it has it.
func (p Protocol) locked(ctx context.Context, f func() error) error {
	theirs, err := lock(ctx, p.dir())
	if err != nil {
		return err
	}
	defer theirs.Close()
	return f()
}

// finish is the time that a change which has begun may take to remove what it leaves, whatever became of its caller.
const finish = 10 * time.Second

// finally is locked for what must be done even if the caller has gone.
func (p Protocol) finally(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finish)
	defer cancel()
	return p.locked(ctx, f)
}

// lock takes the flock of a directory. Closing the file unlocks.
func lock(ctx context.Context, dir string) (*os.File, error) {
	return pin.Lock(ctx, dir, "another change of a dispatcher of libxdp")
}

// makeDir makes the directory that libxdp makes, too. Like ownDir it stays.
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
