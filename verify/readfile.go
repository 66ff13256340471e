// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ReadFile reads a regular file whose name an admin wrote, at most one byte more than limit: who parses it refuses that.
// The FileInfo is that of the bytes. Errors do not repeat the name. O_NONBLOCK: a FIFO must not hold up whoever reads.
func ReadFile(path string, limit int64) ([]byte, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, errors.Unwrap(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Unwrap(err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	return data, info, err
}
