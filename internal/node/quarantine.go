// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/podfs"
)

// A record that cannot be read is left where it is, and so is its volume: a pod uses it, whatever the record looks like. An
// older version of bpfvol may be on the node for an hour, and the newer one must find everything again. List shows the
// volume, and Health and the Reconciler say why. Unpublish takes it away by its id and the target of the call.

// unreadableError says why a record cannot be used.
type unreadableError struct {
	why   string
	newer bool // a newer version of bpfvol wrote it
}

func (e *unreadableError) Error() string {
	fix := "delete the pod to take the volume away"
	if e.newer {
		fix = "install that version again, or delete the pod"
	}
	return "record: cannot be read: " + e.why + "; " + fix
}

// Is makes it an ErrUnreadable, and an ErrNewer.
func (e *unreadableError) Is(target error) bool {
	return target == ErrUnreadable || target == ErrNewer && e.newer
}

// maxRecord is far more than the limits on attributes let a record have.
const maxRecord = 4 << 20

// readRegular reads a file, and nothing else that has its name: neither waits for a pipe nor follows a link.
func readRegular(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, &unreadableError{why: "it is no file"}
	} else if err != nil {
		return nil, recordError(err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, recordError(err)
	}
	if !info.Mode().IsRegular() {
		return nil, &unreadableError{why: "it is no file"}
	}
	data := bytes.NewBuffer(make([]byte, 0, min(info.Size(), maxRecord)+bytes.MinRead))
	if _, err := data.ReadFrom(io.LimitReader(f, maxRecord)); err != nil {
		return nil, recordError(err)
	}
	return data.Bytes(), nil
}

// leaveUnread says whether a volume, of which the record cannot be read as unread says, is at the target of req and whole. Then
// a pod uses it, and starting over would end what that sees. What a newer version wrote is not started over anyhow, nor is a
// PersistentVolume that runs: it may have other targets.
func (e *Engine) leaveUnread(name string, req Request, unread error) (whole bool, err error) {
	if !errors.Is(unread, ErrUnreadable) {
		return false, nil
	}
	pinned := e.pinned(name)
	if pinned {
		if mounted, err := podfs.Mounted(req.Target); mounted || err != nil {
			return mounted, err
		}
	}
	if errors.Is(unread, ErrNewer) || pinned && req.Subject.Persistent {
		return false, unread
	}
	return false, nil
}
