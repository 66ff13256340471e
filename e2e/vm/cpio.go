// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// archive writes what the kernel unpacks as its first file system: cpio's "newc" format (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst). Everything belongs to root. The first error stays.
type archive struct {
	w     io.Writer
	inode int
	err   error
}

func (a *archive) dir(name string)             { a.entry(name, unix.S_IFDIR|0o755, nil, 0) }
func (a *archive) symlink(name, target string) { a.text(name, target, unix.S_IFLNK|0o777) }
func (a *archive) write(name, content string)  { a.text(name, content, unix.S_IFREG|0o644) }
func (a *archive) script(name, content string) { a.text(name, content, unix.S_IFREG|0o755) }
func (a *archive) text(name, c string, mode uint) {
	a.entry(name, mode, strings.NewReader(c), int64(len(c)))
}

// copy adds a file of this machine.
func (a *archive) copy(name, path string) {
	if a.err != nil {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		a.err = err
		return
	}
	mode := uint(unix.S_IFREG | 0o644)
	if info.Mode()&0o111 != 0 {
		mode |= 0o111
	}
	a.entry(name, mode, f, info.Size())
}

// end completes the archive.
func (a *archive) end() error {
	a.entry("TRAILER!!!", 0, nil, 0)
	return a.err
}

func (a *archive) entry(name string, mode uint, content io.Reader, size int64) {
	if a.err != nil {
		return
	}
	if !fs.ValidPath(name) {
		a.err = fmt.Errorf("%q: not a name in an archive", name)
		return
	}
	a.inode++
	// magic, inode, mode, uid, gid, links, mtime, size, device and rdevice (major, minor), length of name, checksum
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0) + name + "\x00"
	if _, a.err = io.WriteString(a.w, head+padding(int64(len(head)))); a.err != nil || size == 0 {
		return
	}
	if _, a.err = io.CopyN(a.w, content, size); a.err != nil {
		a.err = fmt.Errorf("%s: %w", name, a.err)
		return
	}
	_, a.err = io.WriteString(a.w, padding(size))
}

// padding fills up to the next multiple of four.
func padding(n int64) string { return "\x00\x00\x00"[:-n&3] }
