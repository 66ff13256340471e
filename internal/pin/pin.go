// SPDX-License-Identifier: Apache-2.0

// Package pin is for packages that keep state in directories of a bpffs: bytes, names and locks. A bpffs holds no files,
// so bytes are the one entry of a frozen array map, which bpftool can read.
//
// Invariant: what is pinned is what is read, and nobody can change it in between (TestBytesStayWhatTheyAre).
package pin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Bytes makes a map that holds bytes, at least one. The caller pins it and must Close it. name is for bpftool, at most 15
// bytes.
func Bytes(name string, b []byte) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(b)), MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: b}},
	})
	if err != nil {
		return nil, fmt.Errorf("map of bytes: %w", err)
	}
	if err := m.Freeze(); err != nil {
		return nil, errors.Join(fmt.Errorf("freeze map of bytes: %w", err), m.Close())
	}
	return m, nil
}

// ReadBytes reads what Bytes made; os.ErrNotExist if nothing is pinned there.
func ReadBytes(path string) ([]byte, error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return m.LookupBytes(uint32(0))
}

// Names returns the names in a directory, sorted; none if it does not exist.
func Names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Remove removes a pin or an empty directory that may be gone.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// lockPoll is how often a lock that another holds is tried again. Its holder may wait 20 ms for the kernel.
const lockPoll = 2 * time.Millisecond

// Lock takes the flock of a directory and waits for who has it; what says, in words, what is waited for. Closing the file
// unlocks.
func Lock(ctx context.Context, dir, what string) (*os.File, error) {
	f, err := os.Open(dir)
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
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}
