// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"weak"

	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/verify"
)

// rootFile is a trusted root on the node. Whoever verifies looks at the file first, which takes a microsecond: so a change
// holds for the very next publish, whichever way it was made (a ConfigMap's mount swaps a symlink one directory up), for
// policies of a directory and of a cluster alike, and there is no watch that could be lost. What cannot be read or is
// invalid leaves the last good version in force; to take trust away, take the authority from the policy.
type rootFile struct {
	path string

	mu      sync.Mutex
	seen    version // of the file when it was read last
	settled bool    // the file was not being written then
	sum     [sha256.Size]byte
	trust   *trust // the last good, nil if there was none
	bad     error  // what is wrong with the content whose sum that is
	err     error  // what is wrong with the file now
}

// version tells a file from what replaced it without reading it.
type version struct {
	dev, inode       uint64
	size             int64
	mtime, mtimeNs   int64
	change, changeNs int64
}

// settling is how long after a change another one may leave the same times behind. Until then the file is read each time.
const settling = 2 * time.Second

var (
	rootFilesMu sync.Mutex
	rootFiles   = map[string]weak.Pointer[rootFile]{} // those that some authority uses, by path
)

// openRootFile shares one rootFile among the authorities that name the path: it is parsed once for all of them, and a policy
// that is edited while the file is broken keeps the last good version, too.
func openRootFile(path string) *rootFile {
	rootFilesMu.Lock()
	defer rootFilesMu.Unlock()
	if f := rootFiles[path].Value(); f != nil {
		return f
	}
	f := &rootFile{path: path}
	rootFiles[path] = weak.Make(f)
	runtime.AddCleanup(f, func(path string) {
		rootFilesMu.Lock()
		defer rootFilesMu.Unlock()
		if rootFiles[path].Value() == nil { // nobody opened it again meanwhile
			delete(rootFiles, path)
		}
	}, path)
	return f
}

// now implements trustedRoot.
func (f *rootFile) now(ctx context.Context) (*trust, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh(klog.FromContext(ctx))
	if f.trust == nil {
		return nil, f.err
	}
	return f.trust, nil
}

// Err implements trustedRoot.
func (f *rootFile) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh(klog.Background())
	return f.err
}

// refresh reads the file if it may have changed, and logs what that changes.
func (f *rootFile) refresh(log klog.Logger) {
	info, err := os.Stat(f.path)
	if err == nil && f.settled && f.seen == versionOf(info) {
		return
	}
	var data []byte
	if err == nil {
		data, info, err = verify.ReadFile(f.path, maxRoot)
	}
	if err != nil {
		f.settled = false
		f.state(log, bare(err))
		return
	}
	f.seen = versionOf(info)
	f.settled = time.Since(time.Unix(f.seen.change, f.seen.changeNs)) > settling
	if sum := sha256.Sum256(data); sum != f.sum {
		var t *trust
		t, f.bad = parseTrust(data)
		f.sum = sum
		if f.bad == nil {
			f.trust = t
			log.Info("trusted root in force", "file", f.path)
		}
	}
	f.state(log, f.bad)
}

// state notes what is wrong, and logs it once.
func (f *rootFile) state(log klog.Logger, err error) {
	if err != nil {
		err = fmt.Errorf("trustedRoot.file %s: %w", f.path, err)
	}
	if err != nil && (f.err == nil || f.err.Error() != err.Error()) {
		log.Error(err, "trusted root refused, the last good version stays in force")
	}
	f.err = err
}

// bare is an error without the path, which is said already.
func bare(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

func versionOf(info fs.FileInfo) version {
	v := version{size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		v.dev, v.inode = st.Dev, st.Ino
		v.mtime, v.mtimeNs = st.Mtim.Unix()
		v.change, v.changeNs = st.Ctim.Unix()
	}
	return v
}
