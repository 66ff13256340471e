// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"net"
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

// cases returns a case per hook. cgroup is the path of a cgroup of the test's own.
func cases(t testing.TB, cgroup string) map[string]hookCase {
	exec := &volume.RawTracepoint{Name: "sched_process_exec"}
	execCookie := &volume.RawTracepoint{Name: "sched_process_exec", Cookie: testCookie}
	return map[string]hookCase{
		"tracepoint": {
			typ: ebpf.TracePoint, hook: &volume.Tracepoint{Group: "sched", Name: "sched_process_exec", Cookie: testCookie}, cookie: true, trigger: runSomething,
		},
		"syscall tracepoint": {
			typ: ebpf.TracePoint, hook: &volume.Tracepoint{Group: "syscalls", Name: "sys_enter_getpgid", Cookie: testCookie}, cookie: true, trigger: getpgid,
		},
		"rawTracepoint":             {typ: ebpf.RawTracepoint, hook: exec, trigger: runSomething},
		"rawTracepoint with cookie": {typ: ebpf.RawTracepoint, hook: execCookie, cookie: true, since: "6.10", trigger: runSomething},
		"tp_btf":                    {typ: ebpf.Tracing, attach: ebpf.AttachTraceRawTp, hook: exec, trigger: runSomething},
		"tp_btf with cookie":        {typ: ebpf.Tracing, attach: ebpf.AttachTraceRawTp, hook: execCookie, cookie: true, since: "6.10", trigger: runSomething},
		"kprobe":                    {typ: ebpf.Kprobe, hook: &volume.Kprobe{Function: pgidFunction, Cookie: testCookie}, cookie: true, trigger: getpgid},
		"kretprobe":                 {typ: ebpf.Kprobe, hook: &volume.Kprobe{Function: pgidFunction, Cookie: testCookie, Return: true}, cookie: true, trigger: getpgid},
		"fentry":                    {typ: ebpf.Tracing, attach: ebpf.AttachTraceFEntry, hook: &volume.Fentry{Function: pgidFunction, Cookie: testCookie}, cookie: true, trigger: getpgid},
		"fexit":                     {typ: ebpf.Tracing, attach: ebpf.AttachTraceFExit, hook: &volume.Fentry{Function: pgidFunction, Cookie: testCookie, Exit: true}, cookie: true, trigger: getpgid},
		"uprobe":                    {typ: ebpf.Kprobe, hook: &volume.Uprobe{Path: libc(t), Symbol: "malloc", Cookie: testCookie}, cookie: true, trigger: useLibc},
		"uretprobe":                 {typ: ebpf.Kprobe, hook: &volume.Uprobe{Path: libc(t), Symbol: "malloc", Cookie: testCookie, Return: true}, cookie: true, trigger: useLibc},
		"lsm":                       {typ: ebpf.LSM, attach: ebpf.AttachLSMMac, hook: &volume.LSM{Name: "task_getpgid", Cookie: testCookie}, cookie: true, trigger: getpgid},
		"perfEvent": {
			typ: ebpf.PerfEvent, hook: &volume.PerfEvent{Event: "cpu-clock", Frequency: 200, CPU: -1, Cookie: testCookie}, cookie: true,
			trigger: func(testing.TB, place) { burn(100 * time.Millisecond) },
		},
		"cgroup": {
			typ: ebpf.CGroupSockAddr, attach: ebpf.AttachCGroupInet4Connect, hook: &volume.Cgroup{Path: cgroup, Attach: "connect4"},
			trigger: func(t testing.TB, _ place) { socketsIn(t, cgroup) },
		},
		"netfilter": {
			typ: ebpf.Netfilter, attach: ebpf.AttachNetfilter, hook: &volume.Netfilter{Family: "ipv4", Hook: "localOut", Priority: -10}, since: "6.4",
			where: inNetNS, trigger: connectToNobody,
		},
		"skLookup": {typ: ebpf.SkLookup, attach: ebpf.AttachSkLookup, hook: &volume.SKLookup{}, where: inNetNS, trigger: connectToNobody},
		"netkit": {
			typ: ebpf.SchedCLS, attach: ebpf.AttachNetkitPrimary, hook: &volume.Netkit{Interfaces: []string{"nk0"}}, since: "6.7",
			where: onNetkit, trigger: func(t testing.TB, p place) { p.here.SendUDP(t, p.peer.Addr, 1) },
		},
		"netkit peer": {
			typ: ebpf.SchedCLS, attach: ebpf.AttachNetkitPeer, hook: &volume.Netkit{Interfaces: []string{"nk0"}, Peer: true}, since: "6.7",
			where: onNetkit, trigger: func(t testing.TB, p place) { p.peer.SendUDP(t, p.here.Addr, 1) },
		},
	}
}

// pgidFunction is called when getpgid gets, and so is the LSM hook of its name, on every kernel with security modules.
const pgidFunction = "security_task_getpgid"

// getpgid asks for the process group of a process by its number, which nothing else on the machine does.
func getpgid(t testing.TB, _ place) {
	t.Helper()
	if _, err := unix.Getpgid(os.Getpid()); err != nil {
		t.Fatal(err)
	}
}

func runSomething(t testing.TB, _ place) {
	t.Helper()
	if err := exec.Command("/bin/sh", "-c", "/bin/true; exit 0").Run(); err != nil {
		t.Fatal(err)
	}
}

func useLibc(t testing.TB, p place) {
	t.Helper()
	f, err := elf.Open("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) == 0 {
		t.Skipf("/bin/sh is linked statically (%v): it does not call the C library", err)
	}
	runSomething(t, p)
}

// connectToNobody sends a packet that the namespace receives itself, and looks for a socket for it, before it returns.
func connectToNobody(t testing.TB, p place) {
	t.Helper()
	err := p.do(func() error {
		c, err := net.Dial("tcp4", "127.0.0.1:9")
		if err == nil {
			c.Close()
		}
		return err
	})
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("connect: %v, want it refused", err)
	}
}

// prepared finds the place of a case, and skips the test if this kernel has not the hook.
func (c hookCase) prepared(t testing.TB) place {
	t.Helper()
	bpftest.Root(t)
	if c.since != "" {
		bpftest.SkipOnOldKernel(t, c.since, "the hook "+c.hook.String())
	}
	if c.where == nil {
		c.where = anywhere
	}
	p := c.where(t)
	prog, runs, err := newCounter(c)
	bpftest.SkipIfForbidden(t, err)
	if err != nil {
		t.Fatal(err)
	}
	defer runs.Close()
	defer prog.Close()
	links, err := p.attach(prog, c.hook)
	bpftest.SkipIfNotSupported(t, err)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		l.Close()
	}
	return p
}

func (p place) attach(prog *ebpf.Program, h volume.Hook) (links []link.Link, err error) {
	err = p.do(func() (err error) {
		links, err = Attach(prog, h)
		return err
	})
	return links, err
}

func self(role string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), roleEnv+"="+role), env...)
	return cmd
}

func attach(t testing.TB, prog *ebpf.Program, h volume.Hook) []link.Link {
	t.Helper()
	return place{}.attached(t, prog, h)
}

// attached attaches for the time of the test.
func (p place) attached(t testing.TB, prog *ebpf.Program, h volume.Hook) []link.Link {
	t.Helper()
	links, err := p.attach(prog, h)
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
			p := c.prepared(t)
			prog, runs, err := newCounter(c)
			if err != nil {
				t.Fatal(err)
			}
			defer runs.Close()
			defer prog.Close()
			links := p.attached(t, prog, c.hook)
			c.trigger(t, p)
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
			stopped(t, runs, c, p)
		})
	}
}

// stopped checks that a hook no longer runs the program. A link closes on a kernel thread.
func stopped(t testing.TB, runs *ebpf.Map, c hookCase, p place) {
	t.Helper()
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		before, _ := runsOf(t, runs)
		c.trigger(t, p)
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
			p := c.prepared(t)
			dir := bpftest.BPFFS(t)
			makeAndKill(t, p, name, dir, cgroup)
			runs, err := ebpf.LoadPinnedMap(filepath.Join(dir, "runs"), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer runs.Close()
			before, _ := runsOf(t, runs)
			c.trigger(t, p)
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
			stopped(t, runs, c, p)
		})
	}
}

// makeAndKill has a process attach the program of a case, pin links and map to dir, and kills it.
func makeAndKill(t *testing.T, p place, name, dir, cgroup string) {
	t.Helper()
	maker := self("maker", caseEnv+"="+name, dirEnv+"="+dir, cgroupEnv+"="+cgroup)
	out, err := maker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.do(maker.Start); err != nil {
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
}

// makeLinks is the process that is killed.
func makeLinks(name, dir string) error {
	c, ok := cases(&testing.T{}, os.Getenv(cgroupEnv))[name]
	if !ok {
		c = iteratorCase
	}
	prog, runs, err := newCounter(c)
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
		{ebpf.TracePoint, &volume.Kprobe{Function: pgidFunction}, "program is of type TracePoint, the hook needs Kprobe"},
		{ebpf.TracePoint, &volume.Fentry{Function: pgidFunction}, "program is of type TracePoint, the hook needs Tracing"},
		{ebpf.TracePoint, &volume.LSM{Name: "file_open"}, "program is of type TracePoint, the hook needs LSM"},
		{ebpf.TracePoint, &volume.Iter{Target: "task"}, "program is of type TracePoint, the hook needs Tracing"},
		{ebpf.TracePoint, &volume.Netfilter{Family: "ipv4", Hook: "localIn"}, "program is of type TracePoint, the hook needs Netfilter"},
		{ebpf.TracePoint, &volume.SKLookup{}, "program is of type TracePoint, the hook needs SkLookup"},
		{ebpf.TracePoint, &volume.Netkit{Interfaces: []string{"lo"}}, "program is of type TracePoint, the hook needs SchedCLS"},
		{ebpf.XDP, &volume.XDP{Interfaces: []string{"lo"}}, "xdp: its programs share a point; package dispatcher attaches them"},
		{ebpf.Kprobe, &volume.Uprobe{Path: "/etc/passwd", Symbol: "root"}, "not an ELF file; name an executable"},
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
