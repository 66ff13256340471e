// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// rawCookie is the case of a raw tracepoint with a cookie, which Linux has from 6.10 on.
const rawCookie = "raw tracepoint with cookie"

// cases returns a case per hook. cgroup is the path of a cgroup of the test's own.
func cases(t testing.TB, cgroup string) map[string]hookCase {
	run := func(t testing.TB) {
		if err := exec.Command("/bin/sh", "-c", "/bin/true; exit 0").Run(); err != nil {
			t.Fatal(err)
		}
	}
	useLibc := func(t testing.TB) {
		if f, err := elf.Open("/bin/sh"); err != nil {
			t.Fatal(err)
		} else if libs, err := f.ImportedLibraries(); err != nil || len(libs) == 0 {
			t.Skipf("/bin/sh is linked statically (%v): it does not call the C library", err)
		}
		run(t)
	}
	return map[string]hookCase{
		"tracepoint": {ebpf.TracePoint, 0, &volume.Tracepoint{Group: "sched", Name: "sched_process_exec", Cookie: testCookie}, true, run},
		"syscall tracepoint": {ebpf.TracePoint, 0, &volume.Tracepoint{Group: "syscalls", Name: "sys_enter_getpgid", Cookie: testCookie}, true, func(t testing.TB) {
			if _, err := unix.Getpgid(0); err != nil {
				t.Fatal(err)
			}
		}},
		"rawTracepoint": {ebpf.RawTracepoint, 0, &volume.RawTracepoint{Name: "sched_process_exec"}, false, run},
		rawCookie:       {ebpf.RawTracepoint, 0, &volume.RawTracepoint{Name: "sched_process_exec", Cookie: testCookie}, true, run},
		"uprobe":        {ebpf.Kprobe, 0, &volume.Uprobe{Path: libc(t), Symbol: "malloc", Cookie: testCookie}, true, useLibc},
		"uretprobe":     {ebpf.Kprobe, 0, &volume.Uprobe{Path: libc(t), Symbol: "malloc", Cookie: testCookie, Return: true}, true, useLibc},
		"perfEvent": {ebpf.PerfEvent, 0, &volume.PerfEvent{Event: "cpu-clock", Frequency: 200, CPU: -1, Cookie: testCookie}, true, func(testing.TB) {
			burn(100 * time.Millisecond)
		}},
		"cgroup": {ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, &volume.Cgroup{Path: cgroup, Attach: "connect4"}, false, func(t testing.TB) {
			connectIn(t, cgroup)
		}},
	}
}

// connectIn runs a process in a cgroup that connects a socket.
func connectIn(t testing.TB, cgroup string) {
	t.Helper()
	dir, err := openCgroup(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := self("connect")
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

func self(role string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), roleEnv+"="+role), env...)
	return cmd
}

func attach(t testing.TB, prog *ebpf.Program, h volume.Hook) []link.Link {
	t.Helper()
	links, err := Attach(prog, h)
	if err != nil {
		t.Fatalf("attach %s: %v", h, err)
	}
	t.Cleanup(func() {
		for _, l := range links {
			l.Close()
		}
	})
	return links
}

func TestProgramsRunWhereAttached(t *testing.T) {
	cgroup := newCgroup(t)
	for name, c := range cases(t, cgroup) {
		t.Run(name, func(t *testing.T) {
			if name == rawCookie {
				bpftest.SkipOnOldKernel(t, "6.10", name)
			}
			prog, runs, err := newCounter(c.typ, c.attach, c.cookie)
			if err != nil {
				t.Fatal(err)
			}
			defer runs.Close()
			defer prog.Close()
			links := attach(t, prog, c.hook)
			c.trigger(t)
			n, cookie := runsOf(t, runs)
			if n == 0 {
				t.Error("the program did not run")
			}
			if c.cookie && cookie != testCookie {
				t.Errorf("cookie is %#x, want %#x", cookie, testCookie)
			}
			for _, l := range links {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
			stopped(t, runs, c)
		})
	}
}

// stopped checks that a hook no longer runs the program. A link closes on a kernel thread.
func stopped(t testing.TB, runs *ebpf.Map, c hookCase) {
	t.Helper()
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		before, _ := runsOf(t, runs)
		c.trigger(t)
		if after, _ := runsOf(t, runs); after == before {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the program still runs")
		}
	}
}

func TestPinnedLinksOutliveTheirMaker(t *testing.T) {
	cgroup := newCgroup(t)
	for name, c := range cases(t, cgroup) {
		t.Run(name, func(t *testing.T) {
			if name == rawCookie {
				bpftest.SkipOnOldKernel(t, "6.10", name)
			}
			dir := bpftest.BPFFS(t)
			maker := self("maker", caseEnv+"="+name, dirEnv+"="+dir, "BPFVOL_HOOK_CGROUP="+cgroup)
			out, err := maker.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := maker.Start(); err != nil {
				t.Fatal(err)
			}
			said, _ := bufio.NewReader(out).ReadString('\n')
			if err := maker.Process.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			maker.Wait()
			if strings.TrimSpace(said) != "ready" {
				t.Fatalf("maker: %s", said)
			}

			runs, err := ebpf.LoadPinnedMap(filepath.Join(dir, "runs"), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer runs.Close()
			before, _ := runsOf(t, runs)
			c.trigger(t)
			if after, _ := runsOf(t, runs); after == before {
				t.Error("the program died with its maker")
			}
			pins, err := filepath.Glob(filepath.Join(dir, "link*"))
			if err != nil || len(pins) == 0 {
				t.Fatalf("no pinned links: %v", err)
			}
			for _, pin := range pins {
				if err := os.Remove(pin); err != nil {
					t.Fatal(err)
				}
			}
			stopped(t, runs, c)
		})
	}
}

// makeLinks is the process that TestPinnedLinksOutliveTheirMaker kills.
func makeLinks(name, dir string) error {
	c := cases(&testing.T{}, os.Getenv("BPFVOL_HOOK_CGROUP"))[name]
	prog, runs, err := newCounter(c.typ, c.attach, c.cookie)
	if err != nil {
		return err
	}
	links, err := Attach(prog, c.hook)
	if err != nil {
		return err
	}
	for i, l := range links {
		if err := l.Pin(filepath.Join(dir, fmt.Sprintf("link%d", i))); err != nil {
			return err
		}
	}
	return runs.Pin(filepath.Join(dir, "runs"))
}

func TestUnsupportedHookNamesTheSupportedOnes(t *testing.T) {
	for _, k := range volume.Kinds {
		err := Supported(k)
		switch k {
		case volume.KindXDP, volume.KindTC, volume.KindTracepoint, volume.KindRawTracepoint, volume.KindUprobe,
			volume.KindUretprobe, volume.KindCgroup, volume.KindPerfEvent:
			if err != nil {
				t.Errorf("Supported(%s) = %v, want nil", k, err)
			}
		default:
			want := string(k) + ": not supported yet by this version; supported: xdp, tc, tracepoint, rawTracepoint, uprobe, uretprobe, cgroup, perfEvent"
			if !errors.As(err, new(*UnsupportedError)) || err.Error() != want {
				t.Errorf("Supported(%s) = %v, want %s", k, err, want)
			}
		}
	}
}

func TestMissingNamesSayWhatThereIs(t *testing.T) {
	bpftest.Root(t)
	cgroup := newCgroup(t)
	for _, c := range []struct {
		typ  ebpf.ProgramType
		at   ebpf.AttachType
		hook volume.Hook
		want string
	}{
		{ebpf.TracePoint, 0, &volume.Tracepoint{Group: "sched", Name: "sched_swich"}, `tracepoint "sched/sched_swich" does not exist; did you mean "sched/sched_switch"?`},
		{ebpf.TracePoint, 0, &volume.Tracepoint{Group: "shed", Name: "sched_switch"}, `tracepoint group "shed" does not exist; did you mean "sched"?`},
		{ebpf.TracePoint, 0, &volume.Tracepoint{Group: "..", Name: "trace"}, `tracepoint group ".." does not exist`},
		{ebpf.TracePoint, 0, &volume.Tracepoint{Group: "sched", Name: "../sched/sched_switch"}, `tracepoint "sched/../sched/sched_switch" does not exist`},
		{ebpf.RawTracepoint, 0, &volume.RawTracepoint{Name: "sched_swich"}, `raw tracepoint "sched_swich" does not exist; did you mean "sched_switch"?`},
		{ebpf.Kprobe, 0, &volume.Uprobe{Path: libc(t), Symbol: "mallocc"}, `symbol "mallocc" does not exist; did you mean "malloc"?`},
		{ebpf.Kprobe, 0, &volume.Uprobe{Path: "/nonexistent/x", Symbol: "main"}, `binary "/nonexistent/x" does not exist`},
		{ebpf.Kprobe, 0, &volume.Uprobe{Path: libc(t), Symbol: "malloc", PID: 1 << 30}, `process "1073741824" does not exist`},
		{ebpf.PerfEvent, 0, &volume.PerfEvent{Event: "cpu-clok", Frequency: 1, CPU: -1}, `event "cpu-clok" does not exist; did you mean "cpu-clock"?`},
		{ebpf.PerfEvent, 0, &volume.PerfEvent{Event: "cpu-clock", Frequency: 1, CPU: 4095}, `event "cpu-clock": CPU 4095 is not online; online are [0`},
		{ebpf.PerfEvent, 0, &volume.PerfEvent{Event: "cpu-clock", Frequency: 1, CPU: 1 << 20}, `event "cpu-clock": CPU 1048576 is not online; online are [0`},
		{ebpf.PerfEvent, 0, &volume.PerfEvent{Event: "cpu-clock", Frequency: 1, CPU: -1, PID: 1 << 30}, `process "1073741824" does not exist`},
		{ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, &volume.Cgroup{Path: cgroup + "x", Attach: "connect4"}, `cgroup "` + cgroup + `x" does not exist`},
		{ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, &volume.Cgroup{Path: cgroup, Attach: "conect4"}, `cgroup attach type "conect4" does not exist; did you mean "connect4"?`},
	} {
		prog, _ := counter(t, c.typ, c.at)
		_, err := Attach(prog, c.hook)
		if !errors.Is(err, ErrMissing) {
			t.Errorf("%s: error is %v, want ErrMissing", c.hook, err)
		} else if !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s:\n got %s\nwant %s...", c.hook, err, c.want)
		}
	}
}

func TestAttachErrorsLeaveNothing(t *testing.T) {
	bpftest.NothingLeft(t)
	for _, c := range []struct {
		typ  ebpf.ProgramType
		hook volume.Hook
		want string
	}{
		{ebpf.TracePoint, &volume.RawTracepoint{Name: "sched_switch"}, "program is of type TracePoint, the hook needs RawTracepoint"},
		{ebpf.Kprobe, &volume.Uprobe{Path: "/etc/passwd", Symbol: "root"}, "bad magic number"},
		{ebpf.Kprobe, &volume.Uprobe{Path: "/etc", Symbol: "root"}, "not a regular file"},
		{ebpf.Kprobe, &volume.Uprobe{Path: "/bin/sh"}, "neither symbol nor offset given"},
		{ebpf.Kprobe, &volume.Uprobe{Path: libc(t), Symbol: "malloc", Offset: 1 << 20}, "outside its"},
		{ebpf.CGroupSock, &volume.Cgroup{Path: "/"}, "can have: post_bind4, post_bind6, sock, sock_create, sock_release"},
		{ebpf.PerfEvent, &volume.PerfEvent{Event: "cpu-clock", Frequency: 1 << 40, CPU: -1}, "frequency 1099511627776 is more than the node takes"},
		{ebpf.PerfEvent, &volume.PerfEvent{Event: "cpu-clock", CPU: -1}, "neither frequency nor period"},
	} {
		prog, _ := counter(t, c.typ, 0)
		links, err := Attach(prog, c.hook)
		if err == nil || !strings.Contains(err.Error(), c.want) || links != nil {
			t.Errorf("%s: got %v, %v, want error with %q", c.hook, links, err, c.want)
		}
	}
}
