// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// useSockets does once whatever a program of a cgroup can be called for.
func useSockets() {
	os.ReadFile("/proc/sys/kernel/ostype") // sysctl
	if null, err := os.Open(os.DevNull); err == nil {
		null.Close() // dev
	}
	sendToSelf(unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	sendToSelf(unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte{15: 1}})
	sendToSelf(unix.AF_UNIX, &unix.SockaddrUnix{}) // the kernel chooses the name
	if l, err := net.Listen("tcp4", "127.0.0.1:0"); err == nil {
		if c, err := net.Dial("tcp4", l.Addr().String()); err == nil { // sockops
			c.Close()
		}
		l.Close()
	}
}

// sendToSelf has a datagram socket send to itself. Whether all of that succeeds is not what a test is about.
func sendToSelf(family int, local unix.Sockaddr) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	unix.Bind(fd, local)
	name, err := unix.Getsockname(fd)
	if err != nil {
		return
	}
	unix.Sendto(fd, []byte("x"), 0, name)
	unix.Recvfrom(fd, make([]byte, 1), 0)
	unix.Connect(fd, name)
	unix.Getpeername(fd)
}

// socketsIn runs a process in a cgroup that uses sockets.
func socketsIn(t testing.TB, cgroup string) {
	t.Helper()
	dir, err := openCgroup(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := self("sockets")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
}

// newCgroup makes a cgroup and returns its path below the mount.
func newCgroup(t testing.TB) string {
	t.Helper()
	bpftest.Root(t)
	mounts, err := cgroupMounts()
	if err != nil || len(mounts) == 0 {
		t.Skipf("cgroup2 is not mounted: %v", err)
	}
	dir, err := os.MkdirTemp(mounts[0], "bpfvol-test-") //nolint:usetesting // a cgroup can be made only below a cgroup
	if err != nil {
		t.Skipf("make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		// A process that has just ended may still be leaving.
		for end := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			err := os.Remove(dir)
			if err == nil || time.Now().After(end) {
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	})
	return filepath.Base(dir)
}

func TestCgroupPathStaysInside(t *testing.T) {
	name := newCgroup(t)
	mounts, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	symlink := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(mounts[0], name), symlink); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{name, "./" + name, filepath.Join(mounts[0], name), mounts[0] + "/x/../" + name, ".", mounts[0]} {
		dir, err := openCgroup(path)
		if err != nil {
			t.Errorf("openCgroup(%q): %v", path, err)
			continue
		}
		dir.Close()
	}
	for _, path := range []string{"..", "../" + name, "/", "/etc", symlink, mounts[0] + "/../..", name + "/cgroup.procs", name + "/\x00", strings.Repeat("a/", 5000)} {
		dir, err := openCgroup(path)
		if err == nil {
			dir.Close()
		}
		if !errors.Is(err, ErrMissing) {
			t.Errorf("openCgroup(%.40q): error is %v, want ErrMissing", path, err)
		}
	}
}

// Every attach type of the kernel takes the program that its section name promises, and calls it.
func TestCgroupProgramsRunForWhatTheyAreNamed(t *testing.T) {
	path := newCgroup(t)
	for name, typ := range cgroupTypes {
		t.Run(name, func(t *testing.T) {
			if strings.HasSuffix(name, "_unix") {
				bpftest.SkipOnOldKernel(t, "6.7", "cgroup programs for unix sockets")
			}
			prog, runs := counter(t, typ.prog, typ.attach)
			links := attach(t, prog, &volume.Cgroup{Path: path, Attach: name})
			raw, err := links[0].Info()
			if err != nil {
				t.Fatal(err)
			}
			l, err := link.NewFromID(raw.ID)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			info, err := l.Info()
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Cgroup().AttachType; uint32(got) != uint32(typ.attach) {
				t.Errorf("attached as %v, want %v", got, typ.attach)
			}
			socketsIn(t, path)
			if n, _ := runsOf(t, runs); n == 0 {
				t.Error("the program did not run")
			}
		})
	}
	for _, section := range []string{"cgroup/connect4", "cgroup_skb/egress", "cgroup/skb/egress"} {
		if _, _, err := CgroupType(section); err != nil {
			t.Errorf("CgroupType(%q): %v", section, err)
		}
	}
}

// A volume can name what Attach knows, and the other way round, but for the section name that is one more word for
// sock_create.
func TestCgroupTypesAreThoseOfAVolume(t *testing.T) {
	var known []string
	for name := range cgroupTypes {
		if name != "sock" {
			known = append(known, name)
		}
	}
	slices.Sort(known)
	if diff := cmp.Diff(slices.Sorted(slices.Values(volume.CgroupAttachTypes)), known); diff != "" {
		t.Errorf("volume.CgroupAttachTypes (-) and those that attach (+):\n%s", diff)
	}
}

func TestLinkOfACgroupThatIsGoneSaysSo(t *testing.T) {
	bpftest.Root(t)
	pin := bpftest.BPFFS(t) + "/link"
	t.Run("cgroup", func(t *testing.T) { // which ends with this
		prog, _ := counter(t, ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress)
		l := place{}.attached(t, prog, &volume.Cgroup{Path: newCgroup(t), Attach: "skb/egress"})[0]
		wantGone(t, l, "")
		if err := l.Pin(pin); err != nil {
			t.Fatal(err)
		}
	})
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("there is no cgroup to attach to")
	} else if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wantGone(t, l, "the cgroup is gone")
}
