// SPDX-License-Identifier: Apache-2.0

// Package exhaustion holds what happens when a node runs out of something, or something that the node plugin needs goes
// away under it: each publish says what is missing, leaves nothing, and works again when the cause has ended, without a
// restart. Volumes that are there run on, and can be taken away.
package exhaustion

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/e2e/eventdoc"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/kernelstate"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

// onGetpgid counts calls of getpgid(2), which nothing on the machine calls by itself.
const onGetpgid = "{program: on_tracepoint, tracepoint: syscalls/sys_enter_getpgid}"

// trial is a node with a volume that was published before anything went wrong.
type trial struct {
	*nodetest.Node
	image string
	stays *nodetest.Volume
}

// begin starts a node. before, if not nil, prepares its directories while the daemon is stopped.
func begin(t *testing.T, before func(*nodetest.Node)) *trial {
	t.Helper()
	n := nodetest.Start(t, nodetest.Options{})
	if before != nil {
		n.StopDaemon(t, syscall.SIGTERM)
		before(n)
		n.StartDaemon(t)
	}
	image := n.Signed(t, "hooks", filepath.Join("..", "..", "bpf", "hooks.bpf.o"))
	return &trial{n, image, n.Publish(t, map[string]string{"image": image, "attach": onGetpgid})}
}

// refused fails unless a publish was refused with a code and a text, which is documented.
func refused(t *testing.T, err error, code codes.Code, text *regexp.Regexp) {
	t.Helper()
	var refused *kubelet.MountError
	if !errors.As(err, &refused) || refused.Status.Code() != code || !text.MatchString(refused.Status.Message()) {
		t.Errorf("publish: %v\nwant %v: %s", err, code, text)
		return
	}
	if entries, _ := eventdoc.Read(t); !eventdoc.Has(entries, code, refused.Status.Message()) {
		t.Errorf("not in %s, under %v: %s", eventdoc.File, code, refused.Status.Message())
	}
}

// want publishes another volume and wants a refusal with a text, and nothing left of it. The volume from before counts.
func (tr *trial) want(t *testing.T, v *nodetest.Volume, code codes.Code, text string) {
	t.Helper()
	before, err := kernelstate.Take(tr.Kept()...)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, v.SetUp(t.Context()), code, regexp.MustCompile("^"+regexp.QuoteMeta(text)+"$"))
	if err := v.TearDown(t.Context()); err != nil {
		t.Errorf("unpublish after the refusal: %v", err)
	}
	left, err := kernelstate.Leftovers(t.Context(), before, tr.Kept()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range left {
		t.Error("left behind:", what)
	}
	tr.counts(t, tr.stays)
}

func (tr *trial) counts(t *testing.T, v *nodetest.Volume) {
	t.Helper()
	hits := func() (n uint64) {
		if !v.Value(t, "hits", "0", &n) {
			t.Fatal("the map has no element 0")
		}
		return n
	}
	before := hits()
	if _, err := unix.Getpgid(0); err != nil {
		t.Fatal(err)
	}
	if got := hits() - before; got != 1 {
		t.Errorf("counted %d calls, want 1", got)
	}
}

// works publishes a volume, which must count, and takes it away.
func (tr *trial) works(t *testing.T, v *nodetest.Volume) {
	t.Helper()
	if err := v.SetUp(t.Context()); err != nil {
		t.Fatalf("publish when the cause has ended: %v", err)
	}
	tr.counts(t, v)
	if err := v.TearDown(t.Context()); err != nil {
		t.Error(err)
	}
}

func (tr *trial) another() *nodetest.Volume {
	return tr.New(map[string]string{"image": tr.image, "attach": onGetpgid})
}

// unknown is a volume of an image that the daemon has not in its cache.
func (tr *trial) unknown(t *testing.T) *nodetest.Volume {
	t.Helper()
	elsewhere, image := t.TempDir(), tr.Image("unknown")
	tr.Run(t, "build", filepath.Join("..", "..", "bpf", "hooks.bpf.o"), "-t", image, "--push", "--cache-dir", elsewhere)
	tr.Run(t, "sign", image, "--key", tr.KeyPrefix()+".key", "--cache-dir", elsewhere)
	return tr.New(map[string]string{"image": image, "attach": onGetpgid})
}

// mount puts a small tmpfs on a directory, with what is in it.
func mount(t *testing.T, dir, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
}

// fill writes a file until the file system is full.
func fill(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "filler")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return path
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// unmountAtEnd takes the tmpfs away when the node is still there and its daemon is not.
func (tr *trial) unmountAtEnd(t *testing.T, dir string) {
	t.Helper()
	t.Cleanup(func() {
		if err := tr.stays.TearDown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		tr.StopDaemon(t, syscall.SIGTERM)
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestCacheDiskFull(t *testing.T) {
	tr := begin(t, func(n *nodetest.Node) { mount(t, n.CacheDir(), "size=1m") })
	tr.unmountAtEnd(t, tr.CacheDir())
	v := tr.unknown(t)
	filler := fill(t, tr.CacheDir())
	tr.want(t, v, codes.ResourceExhausted, `image `+v.Image()+`: image cache: no space left on device`)
	tr.works(t, tr.another()) // what is in the cache needs no room
	remove(t, filler)
	tr.works(t, v)
}

func TestStateDirectoryFull(t *testing.T) {
	tr := begin(t, func(n *nodetest.Node) { mount(t, n.StateDir(), "size=256k") })
	tr.unmountAtEnd(t, tr.StateDir())
	goes := tr.Publish(t, map[string]string{"image": tr.image, "attach": onGetpgid})
	filler := fill(t, tr.StateDir())
	v := tr.another()
	tr.want(t, v, codes.ResourceExhausted, "record: no space left on device; look at the node plugin's state directory")
	if err := goes.TearDown(t.Context()); err != nil {
		t.Errorf("unpublish while /run is full: %v", err)
	}
	remove(t, filler)
	tr.works(t, v)
}

// Of the directory that is read-only, one in which the daemon has nothing open: the kernel refuses to make that so.
func TestStateDirectoryReadOnly(t *testing.T) {
	tr := begin(t, nil)
	locks := filepath.Join(tr.StateDir(), "locks")
	for _, flags := range []uintptr{unix.MS_BIND, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY} {
		if err := unix.Mount(locks, locks, "", flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	v := tr.another()
	refused(t, v.SetUp(t.Context()), codes.FailedPrecondition, regexp.MustCompile("^lock: read-only file system; look at the node plugin's state directory$"))
	tr.counts(t, tr.stays)
	if err := unix.Unmount(locks, 0); err != nil {
		t.Fatal(err)
	}
	tr.works(t, v)
}

// Every connection is a descriptor. Whoever opens too many, the daemon goes on when they are closed.
func TestNoFileDescriptorLeft(t *testing.T) {
	tr := begin(t, nil)
	limit := unix.Rlimit{Cur: 64, Max: 64}
	if err := unix.Prlimit(tr.DaemonPID(), unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	tr.works(t, tr.another()) // 64 are enough
	socket := strings.TrimPrefix(tr.Endpoint(), "unix://")
	var connections []net.Conn
	descriptors := filepath.Join("/proc", fmt.Sprint(tr.DaemonPID()), "fd")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		open, err := os.ReadDir(descriptors)
		if err != nil {
			t.Fatal(err)
		}
		if len(open) >= 62 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon has %d descriptors, want as many as it may have", len(open))
		}
		if len(connections) < 200 {
			c, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			connections = append(connections, c)
		}
	}
	v := tr.another()
	refused(t, v.SetUp(t.Context()), codes.ResourceExhausted, regexp.MustCompile("too many open files"))
	for _, c := range connections {
		c.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := v.SetUp(t.Context()); err == nil || time.Now().After(deadline) {
			break
		}
	}
	tr.works(t, v)
}

// Somebody unmounts the bpffs, and with it ends all programs. What is new gets a bpffs, what was there can be taken away.
func TestBPFFSUnmounted(t *testing.T) {
	tr := begin(t, nil)
	if err := unix.Unmount(tr.BPFFSDir(), 0); err != nil {
		t.Fatal(err)
	}
	if got := tr.Run(t, "list"); !strings.Contains(got, "its pins are gone") {
		t.Errorf("list is %q, want it to say that the pins are gone", got)
	}
	tr.works(t, tr.another())
	if err := tr.stays.TearDown(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(tr.stays.Target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("target: error is %v, want none there", err)
	}
}

func TestCacheDirectoryGone(t *testing.T) {
	tr := begin(t, nil)
	v := tr.unknown(t)
	if err := os.RemoveAll(tr.CacheDir()); err != nil {
		t.Fatal(err)
	}
	tr.works(t, v)
	tr.counts(t, tr.stays)
}

// The memory cgroup of the node plugin's container has a limit, and maps count.
func TestMemoryCgroupTooSmallForAMap(t *testing.T) {
	tr := begin(t, nil)
	limitMemory(t, tr.DaemonPID(), 32<<20)
	v := tr.New(map[string]string{"image": tr.image, "attach": onGetpgid, "mapEntries": "{hits: 6000000}"})
	tr.want(t, v, codes.ResourceExhausted, "load: map hits: cannot allocate memory; ask for less, for example by mapEntries")
	tr.works(t, tr.another())
}

// limitMemory puts a process into a memory cgroup, of whichever version the machine has.
func limitMemory(t *testing.T, pid, bytes int) {
	t.Helper()
	root, limit := "/sys/fs/cgroup", "memory.max"
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err == nil {
		root, limit = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	} else if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0o600); err != nil {
		t.Skipf("a memory cgroup: %v", err)
	}
	dir, err := os.MkdirTemp(root, "bpfvol-e2e-") //nolint:usetesting // a cgroup, in its own file system
	if err != nil {
		t.Skipf("make a memory cgroup: %v", err)
	}
	t.Cleanup(func() {
		// A cgroup with a process in it cannot be removed, and the daemon ends after this.
		if err := errors.Join(os.WriteFile(filepath.Join(root, "cgroup.procs"), fmt.Append(nil, pid), 0o600), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, limit), fmt.Append(nil, bytes), 0o600),
		os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
}
