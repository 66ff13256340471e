// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/host"
	"github.com/bpfvol/bpfvol/internal/netns"
)

// namespaces remembers where each network namespace was found: the search asks every process, which takes tens of
// milliseconds on a busy node.
type namespaces struct {
	host  host.Process
	mu    sync.Mutex
	paths map[uint64]string // by cookie
}

// inNetNS runs f in the network namespace of the point; see namespaces.do.
func (s *site) inNetNS(f func() error) (found bool, err error) { return s.namespaces.do(s.NetNS, f) }

// do runs f in the network namespace with a cookie: at once if that is the calling thread's, else on another thread. found
// is false if no process and no mount holds the namespace: then it is gone, or about to.
func (n *namespaces) do(cookie uint64, f func() error) (found bool, err error) {
	here, err := netns.Cookie()
	if err != nil {
		return false, err
	}
	if here == cookie {
		return true, f()
	}
	err = n.host.OnThread(func() error {
		if found = n.enter(cookie); found {
			return f()
		}
		return nil
	})
	return found, err
}

// enter moves the calling thread to a namespace. If that cannot be found, the thread may be in any.
func (n *namespaces) enter(cookie uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if path := n.paths[cookie]; path != "" && cookieOf(path) == cookie {
		return true
	}
	n.paths = map[uint64]string{}
	for _, path := range netnsPaths() {
		n.paths[cookieOf(path)] = path
	}
	path := n.paths[cookie]
	return path != "" && cookieOf(path) == cookie
}

// cookieOf moves the calling thread to the namespace at a path and returns its cookie; 0, which no namespace has, if it is
// gone since it was listed.
func cookieOf(path string) uint64 {
	if enter(path) != nil {
		return 0
	}
	cookie, _ := netns.Cookie()
	return cookie
}

// ownNetNS is the calling thread's network namespace.
const ownNetNS = "/proc/thread-self/ns/net"

func enter(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
}

// netnsPaths lists a path of each network namespace that a process is in or a mount keeps.
func netnsPaths() []string {
	var paths, seen []string
	for _, list := range []iter.Seq2[string, string]{netnsOfProcesses, netnsMounts} {
		for path, inode := range list {
			if !slices.Contains(seen, inode) {
				paths, seen = append(paths, path), append(seen, inode)
			}
		}
	}
	return paths
}

// netnsOfProcesses yields a path of every process's network namespace, and what identifies it: "net:[4026531840]".
func netnsOfProcesses(yield func(path, inode string) bool) {
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range processes {
		if inode, err := os.Readlink(path); err == nil && !yield(path, inode) {
			return
		}
	}
}

// netnsMounts yields the network namespaces that are mounted somewhere, as ip netns and container runtimes do.
func netnsMounts(yield func(path, inode string) bool) {
	mounts, _ := os.ReadFile("/proc/thread-self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[3], "net:[") && !yield(f[4], f[3]) {
			return
		}
	}
}
