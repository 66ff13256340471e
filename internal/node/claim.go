// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Claim makes this process the one daemon of a state directory, until release is called or the process ends, however it
// ends. Two daemons would take each other's volumes for leftovers of a crash. The verbs of the command line claim
// nothing: what they share with a daemon is locked by volume.
func Claim(stateDir string) (release func(), err error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	// The file stays: a lock on a removed one would exclude nobody.
	f, err := os.OpenFile(filepath.Join(stateDir, "daemon"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			holder, _ := io.ReadAll(io.LimitReader(f, 128)) // only for the text
			return nil, fmt.Errorf("state directory %s: another bpfvol serve works on it: %q; stop that first",
				stateDir, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("state directory: lock %s: %w", f.Name(), err)
	}
	// The lock holds without, so a full disk is no reason not to start: a daemon can still take volumes away. In a pod
	// the process id is one of the container's, and the host's name is that of the pod.
	if f.Truncate(0) == nil {
		host, _ := os.Hostname()
		_, _ = fmt.Fprintf(f, "pid %d on %s\n", os.Getpid(), host)
	}
	return func() { f.Close() }, nil
}
