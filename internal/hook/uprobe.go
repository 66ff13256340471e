// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// attachUprobe probes a function of a file, in every process that maps it or in one. A uretprobe on a Go function
// breaks that process as soon as its stack moves: the Go runtime does not know the kernel's return address.
func attachUprobe(prog *ebpf.Program, h *volume.Uprobe) (link.Link, error) {
	if err := wantType(prog, ebpf.Kprobe); err != nil {
		return nil, err
	}
	file, err := openRegular(h.Path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	address, err := probeOffset(file, h)
	if err != nil {
		return nil, err
	}

	// By the open file: in one that replaced it the offset would point anywhere, even into an instruction. (bpftool shows
	// this path then; volume.json has the one that was asked for.)
	ex, err := link.OpenExecutable(ownFile(int(file.Fd())))
	if err != nil {
		return nil, err
	}
	attach := ex.Uprobe
	if h.Return {
		attach = ex.Uretprobe
	}
	l, err := attach("", prog, &link.UprobeOptions{Address: address, PID: h.PID, Cookie: h.Cookie})
	if h.PID != 0 && errors.Is(err, unix.ESRCH) {
		return nil, &MissingError{What: "process", Name: strconv.Itoa(h.PID)}
	} else if err != nil {
		return nil, fmt.Errorf("%s %s: %w", h.Kind(), quote(h.Path), err)
	}
	return l, nil
}

// openRegular opens a file that exists and is a regular one. It looks before it opens: opening a FIFO waits for a writer,
// and opening a device can do anything. What the kernel makes up as it is read has no size: its log, for example, goes to
// one reader alone.
func openRegular(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if notThere(err) {
		return nil, &MissingError{What: "binary", Name: path}
	} else if err != nil {
		return nil, unreadable(path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("binary %s: %w", quote(path), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
		return nil, unfit("binary %s: not a regular file; name an executable or a shared library", quote(path))
	}
	file, err := os.Open(ownFile(fd))
	if err != nil {
		return nil, unreadable(path, err)
	}
	return file, nil
}

// unreadable is about a file that exists. Some file systems refuse root.
func unreadable(path string, err error) error {
	if errors.Is(err, os.ErrPermission) {
		return unfit("binary %s: %v; make it readable", quote(path), errnoOf(err))
	}
	return fmt.Errorf("binary %s: %w", quote(path), errnoOf(err))
}

// ownFile is a path of a file that this process has open.
func ownFile(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// probeOffset returns where in the file the probe goes.
func probeOffset(file *os.File, h *volume.Uprobe) (uint64, error) {
	if h.Symbol == "" {
		if h.Offset == 0 {
			return 0, fmt.Errorf("%s %s: neither symbol nor offset given", h.Kind(), quote(h.Path))
		}
		return h.Offset, nil
	}
	sym, ok, names, err := findFunction(file, h.Symbol)
	if err != nil {
		return 0, unfit("binary %s: %v; name an executable or a shared library", quote(h.Path), err)
	}
	if !ok {
		if len(names) == 0 {
			return 0, &worded{fmt.Sprintf("binary %s: has no function symbols; give an offset in the file", quote(h.Path)), []error{ErrMissing}}
		}
		return 0, &MissingError{What: "symbol", Name: h.Symbol, Where: "the binary has", Known: names}
	}
	if h.Offset > 0 && h.Offset >= sym.size {
		return 0, unfit("symbol %s: offset %d is outside its %d bytes; choose a smaller one", quote(h.Symbol), h.Offset, sym.size)
	}
	return sym.offset + h.Offset, nil
}
