// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxSocketPath is the longest path that fits into struct sockaddr_un with its NUL (unix(7)).
const maxSocketPath = 107

// listen makes a socket, for root alone from its first moment on. A socket that a killed process left is removed; one
// that another process answers on is not.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{
		// The mode of an unbound socket is the mode of the file that bind makes (unix_bind_bsd in net/unix/af_unix.c).
		Control: func(_, _ string, c syscall.RawConn) error {
			var chmod error
			if err := c.Control(func(fd uintptr) { chmod = syscall.Fchmod(int(fd), 0o600) }); err != nil {
				return err
			}
			return chmod
		},
	}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

func socketPath(endpoint string) (string, error) {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	switch {
	case !ok || !filepath.IsAbs(path):
		return "", fmt.Errorf("endpoint %q: must be unix:// and an absolute path: unix:///run/bpfvol/csi.sock", endpoint)
	case len(path) > maxSocketPath:
		return "", fmt.Errorf("endpoint %q: a socket's path has at most %d bytes, this one %d", endpoint, maxSocketPath, len(path))
	}
	return filepath.Clean(path), nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("exists and is no socket; remove it or choose another path")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return errors.New("another process answers here; stop it first")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
