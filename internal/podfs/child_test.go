// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// childEnv makes the test binary somebody else: a reader, or a daemon that is killed.
const childEnv = "BPFVOL_PODFS_CHILD"

// user is who a child runs as.
type user struct {
	uid, gid uint32
	groups   []uint32
	clone    uintptr // namespaces of its own
}

var (
	root   = user{}
	nobody = user{uid: 65534, gid: 65534}
	member = user{uid: 65534, gid: 65534, groups: []uint32{2000}}
	// apart sees no process but its own.
	apart = user{uid: 65534, gid: 65534, clone: syscall.CLONE_NEWPID}
)

// as runs a child and returns what it printed.
func as(t testing.TB, u user, what string, args ...string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}, Cloneflags: u.clone}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return strings.TrimSpace(fmt.Sprintf("%s%v", out, err))
	}
	return string(out)
}

func child(what string, args []string) int {
	awaitVolume()
	switch what {
	case "read":
		read(args[0])
	case "cat":
		if err := refuseBPF(); err != nil {
			fmt.Println(err)
			return 1
		}
		cat(args[0])
	case "write":
		write(args[0])
	case "mount":
		mountAndDie(args[0], args[1])
	case "update":
		update(args[0])
	case "consume":
		consume(args[0])
	case "rearrange":
		rearrange(args[0])
	case "litter":
		fmt.Print(errno(litter(args[0])))
	case "container":
		if err := runContainer(args[0], args[1], args[2], args[3]); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return 0
}

// read uses a pinned map as a reader in a pod does.
func read(pin string) {
	m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	fmt.Print("get(ro)=", errno(err))
	if err == nil {
		var v [2]uint64
		fmt.Print(" lookup=", errno(m.Lookup(uint32(443), &v)), " ", v)
		fmt.Print(" update=", errno(m.Put(uint32(443), v)))
		m.Close()
	}
	m, err = ebpf.LoadPinnedMap(pin, nil)
	fmt.Print(" get(rw)=", errno(err))
	if err == nil {
		m.Close()
	}
	m, err = ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{WriteOnly: true})
	fmt.Println(" get(wo)=", errno(err))
	if err == nil {
		m.Close()
	}
}

// cat prints a file as cat does, after showing that bpf(2) is refused.
func cat(file string) {
	_, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET, 0, 0)
	fmt.Println("bpf:", errno(e))
	b, err := os.ReadFile(file)
	fmt.Printf("cat: %s\n%s", errno(err), b)
}

// write tries what changes files.
func write(dir string) {
	for _, what := range []struct {
		name string
		err  error
	}{
		{"create", os.WriteFile(dir+"/x", nil, 0o644)},
		{"unlink", os.Remove(dir + "/volume.json")},
		{"append", func() error {
			f, err := os.OpenFile(dir+"/volume.json", os.O_WRONLY, 0)
			f.Close()
			return err
		}()},
		{"chmod", os.Chmod(dir+"/volume.json", 0o777)},
		{"unpin", os.Remove(dir + "/maps/flows")},
		{"unlink json", os.Remove(dir + "/json/flows")},
		{"mkdir", os.Mkdir(dir+"/maps/x", 0o755)},
		{"chmod pin", os.Chmod(dir+"/maps/flows", 0o777)},
		{"chown pin", os.Chown(dir+"/maps/flows", 65534, 65534)},
		{"write json", func() error {
			f, err := os.OpenFile(dir+"/json/flows", os.O_WRONLY, 0)
			f.Close()
			return err
		}()},
	} {
		fmt.Printf("%s=%s ", what.name, errno(what.err))
	}
}

// mountAndDie mounts a volume and is killed before a step.
func mountAndDie(target, at string) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "data", Type: ebpf.Hash, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	if err == nil {
		err = mountContent(context.Background(), target, Content{Maps: []Map{{Name: "flows", Map: m, Access: volume.ReadWrite}}}, Options{step: func(step string) {
			if step == at {
				unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
		}})
	}
	fmt.Println("survived:", err)
}

// refuseBPF installs what containerd's default seccomp profile does to bpf(2), for all threads.
func refuseBPF() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_BPF, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return e
	}
	return nil
}

// errno names an error as the kernel does.
func errno(err error) string {
	var e unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e) && e == 0:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}
