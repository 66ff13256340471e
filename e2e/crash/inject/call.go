// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// call is a system call that waits for an answer, as its thread made it.
type call struct {
	name string
	tid  int
	args [6]uint64
}

// read copies memory of the process.
func (c call) read(addr uint64, size int) []byte {
	buf := make([]byte, size)
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(size)
	n, err := unix.ProcessVMReadv(c.tid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: size}}, 0)
	if err != nil {
		return make([]byte, size) // it is ending, or passed nonsense
	}
	return buf[:n]
}

// text copies a string that ends with a zero. It stops at page borders, as the next page may not be there.
func (c call) text(addr uint64) string {
	const page = 4096
	var s []byte
	for addr != 0 && len(s) < unix.PathMax {
		part := c.read(addr, int(page-addr%page))
		if end := bytes.IndexByte(part, 0); end >= 0 {
			return string(append(s, part[:end]...))
		}
		s = append(s, part...)
		addr += uint64(len(part))
	}
	return string(s)
}

func (c call) word(addr uint64) uint32 { return binary.NativeEndian.Uint32(c.read(addr, 4)) }

func (c call) long(addr uint64) uint64 { return binary.NativeEndian.Uint64(c.read(addr, 8)) }

// file is what a descriptor is open on.
func (c call) file(fd uint64) string {
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.tid, int32(fd)))
	if err != nil {
		return "?"
	}
	return target
}

// path is where a path leads to, in words: from a directory's descriptor, or through one of the process's own in /proc.
func (c call) path(dir, addr uint64) string {
	from, below, ok := c.from(dir, addr)
	if !ok {
		return below
	}
	return filepath.Join(c.file(from), below)
}

// reach is path for us to look there, which names do not lead to in a file system that is not mounted.
func (c call) reach(dir, addr uint64) string {
	from, below, ok := c.from(dir, addr)
	if !ok {
		return below
	}
	return fmt.Sprintf("/proc/%d/fd/%d/%s", c.tid, int32(from), below)
}

// from splits a path into a descriptor and what is below it; ok is false where there is no descriptor.
func (c call) from(dir, addr uint64) (fd uint64, below string, ok bool) {
	path := c.text(addr)
	if rest, own := strings.CutPrefix(path, "/proc/self/fd/"); own {
		number, below, _ := strings.Cut(rest, "/")
		if _, err := fmt.Sscan(number, &fd); err == nil {
			return fd, below, true
		}
	}
	if filepath.IsAbs(path) || int32(dir) == unix.AT_FDCWD {
		return 0, path, false
	}
	return dir, path, true
}
