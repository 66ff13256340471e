// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// source has a program for every hook that a C compiler and a loader of ELF files attach without this package.
const source = `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
char _license[] SEC("license") = "GPL";
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __type(key, int); __type(value, long); __uint(max_entries, 1); } values SEC(".maps");
__attribute__((noinline)) int slot(struct xdp_md *ctx) { volatile int v = XDP_PASS; return ctx ? v : XDP_ABORTED; }
SEC("xdp") int target(struct xdp_md *ctx) { return slot(ctx); }
SEC("freplace/slot") int freplace(struct xdp_md *ctx) { return XDP_PASS; }
SEC("fentry/bpf_fentry_test1") int fentry(void *ctx) { return 0; }
SEC("lsm/file_open") int lsm(void *ctx) { return 0; }
SEC("iter/bpf_map_elem") int iter(void *ctx) { return 0; }
SEC("tcx/ingress") int tcx(struct __sk_buff *skb) { return -1; }
SEC("netfilter") int netfilter_accept(void *ctx) { return 1; }
SEC("sk_lookup") int sk_lookup_pass(void *ctx) { return 1; }
SEC("cgroup/connect4") int connect4(void *ctx) { return 1; }
SEC("tracepoint/sched/sched_process_exec") int tracepoint(void *ctx) { return 0; }
SEC("raw_tracepoint/sched_process_exec") int raw_tracepoint(void *ctx) { return 0; }
SEC("kprobe/vprintk") int kprobe(void *ctx) { return 0; }
SEC("perf_event") int perf_event_sample(void *ctx) { return 0; }
SEC("socket") int socket_filter(void *ctx) { return 0; }
`

// direct makes attempts by other means than the package: programs from C, commands, mounts with a path.
type direct struct {
	t    *testing.T
	spec *ebpf.CollectionSpec
}

func (d direct) load(name string, change ...func(*ebpf.ProgramSpec)) (*ebpf.Program, error) {
	spec := d.spec.Programs[name].Copy()
	for _, f := range change {
		f(spec)
	}
	prog, err := ebpf.NewProgram(spec)
	if err == nil {
		d.t.Cleanup(func() { prog.Close() })
	}
	return prog, err
}

// loaded calls f with a loaded program.
func (d direct) loaded(name string, f func(*ebpf.Program) error) error {
	prog, err := d.load(name)
	if err != nil {
		return err
	}
	return f(prog)
}

// inNetNS calls f with a loaded program in a network namespace.
func (d direct) inNetNS(name string, f func(*ebpf.Program) error) error {
	return d.loaded(name, func(p *ebpf.Program) error {
		return bpftest.NewNetNS(d.t).Do(func() error { return f(p) })
	})
}

func (d direct) freplace() error {
	target, err := d.load("target", func(s *ebpf.ProgramSpec) { s.AttachType = ebpf.AttachXDP })
	if err != nil {
		d.t.Fatalf("target of freplace: %v", err)
	}
	_, err = d.load("freplace", func(s *ebpf.ProgramSpec) { s.AttachTarget = target })
	return err
}

func (d direct) iter(p *ebpf.Program) error {
	m, err := ebpf.NewMap(d.spec.Maps["values"])
	if err != nil {
		return err
	}
	defer m.Close()
	it, err := link.AttachIter(link.IterOptions{Program: p, Map: m})
	if err != nil {
		return err
	}
	return it.Close()
}

// command runs commands of iproute2 in a fresh network namespace.
func (d direct) command(script string) error {
	out, err := exec.Command("nsenter", "--net="+bpftest.NewNetNS(d.t).Path(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, bytes.TrimSpace(out))
	}
	return nil
}

// perf runs a program at a perf event as kernels without links did.
func perf(p *ebpf.Program, kind uint32, config uint64) error {
	attr := &unix.PerfEventAttr{Type: kind, Config: config, Sample: 1 << 40}
	attr.Size = uint32(unsafe.Sizeof(*attr))
	fd, err := unix.PerfEventOpen(attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, p.FD())
}

func (d direct) tracepoint(p *ebpf.Program) error {
	dir := d.t.TempDir()
	if err := unix.Mount("tracefs", dir, "tracefs", 0, ""); err != nil {
		return err
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	return perf(p, unix.PERF_TYPE_TRACEPOINT, number(d.t, filepath.Join(dir, "events/sched/sched_process_exec/id")))
}

func (d direct) kprobe(p *ebpf.Program) error {
	const file = "/sys/bus/event_source/devices/kprobe/type"
	if _, err := os.Stat(file); err != nil {
		return err
	}
	name := append([]byte("vprintk"), 0)
	attr := &unix.PerfEventAttr{Type: uint32(number(d.t, file)), Ext1: uint64(uintptr(unsafe.Pointer(&name[0])))}
	attr.Size = uint32(unsafe.Sizeof(*attr))
	fd, err := unix.PerfEventOpen(attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, p.FD())
}

func number(t *testing.T, file string) uint64 {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (d direct) uprobe(p *ebpf.Program) error {
	libs, err := filepath.Glob("/lib/*/libc.so.6")
	if err != nil || len(libs) == 0 {
		d.t.Fatalf("libc: %v", err)
	}
	ex, err := link.OpenExecutable(libs[0])
	if err != nil {
		return err
	}
	return end(ex.Uprobe("quick_exit", p, &link.UprobeOptions{PID: os.Getpid()}))
}

func (d direct) cgroup(p *ebpf.Program) error {
	at, err := findCgroup2()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(at, "bpfvol-test-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	return end(link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupInet4Connect, Program: p}))
}

// runsForFiles attaches an LSM program and opens a file. Kernels may attach it and never call it.
func runsForFiles(p *ebpf.Program) error {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return err
	}
	defer stats.Close()
	l, err := link.AttachLSM(link.LSMOptions{Program: p})
	if err != nil {
		return err
	}
	defer l.Close()
	if _, err := os.ReadFile(os.DevNull); err != nil {
		return err
	}
	if s, err := p.Stats(); err != nil || s.RunCount == 0 {
		return fmt.Errorf("the program did not run (%w)", err)
	}
	return nil
}

func (d direct) readOnly() error {
	dir := bpftest.BPFFS(d.t)
	m, err := ebpf.NewMap(d.spec.Maps["values"])
	if err != nil {
		return err
	}
	defer m.Close()
	path := filepath.Join(dir, "values")
	if err := m.Pin(path); err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
		return errors.Join(errors.New("opened for writing"), m.Close())
	} else if !errors.Is(err, unix.EROFS) {
		return err
	}
	return nil
}

// writable mounts as mount(8) does: a second, read-only mount of what is there.
func (d direct) writable() error {
	dir := bpftest.BPFFS(d.t)
	m, err := ebpf.NewMap(d.spec.Maps["values"])
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(dir, "values")); err != nil {
		return err
	}
	at := d.t.TempDir()
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	d.t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			d.t.Error(err)
		}
	})
	if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(at, "values")); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("removed: %w", err)
	}
	opened, err := ebpf.LoadPinnedMap(filepath.Join(at, "values"), nil)
	if err != nil {
		return err
	}
	return opened.Close()
}

func end(l link.Link, err error) error {
	if err != nil {
		return err
	}
	return l.Close()
}

func nothing(*ebpf.Program) error { return nil }

func TestChecksAgreeWithDirectAttempts(t *testing.T) {
	bpftest.Root(t)
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpftest.Clang(t, source)))
	if err != nil {
		t.Fatal(err)
	}
	const lo = 1
	checks := byName(Run(t.Context(), ""))
	for name, try := range map[string]func(direct) error{
		"load":          func(d direct) error { return d.loaded("socket_filter", nothing) },
		"bpffsReadOnly": direct.readOnly,
		"bpffsWritable": direct.writable,
		"xdp": func(d direct) error {
			return d.inNetNS("target", func(p *ebpf.Program) error {
				return end(link.AttachXDP(link.XDPOptions{Program: p, Interface: lo, Flags: link.XDPGenericMode}))
			})
		},
		"tcx": func(d direct) error {
			return d.inNetNS("tcx", func(p *ebpf.Program) error {
				return end(link.AttachTCX(link.TCXOptions{Program: p, Interface: lo, Attach: ebpf.AttachTCXIngress}))
			})
		},
		"cls_bpf": func(d direct) error {
			return d.command("tc qdisc add dev lo clsact; tc filter add dev lo ingress bpf bytecode '1,6 0 0 4294967295'")
		},
		"netkit": func(d direct) error { return d.command("ip link add direct type netkit") }, // its peer becomes nk0
		"netfilter": func(d direct) error {
			return d.inNetNS("netfilter_accept", func(p *ebpf.Program) error {
				return end(link.AttachNetfilter(link.NetfilterOptions{Program: p, ProtocolFamily: link.NetfilterProtoIPv6, Hook: link.NetfilterInetForward, Priority: 5}))
			})
		},
		"skLookup":   func(d direct) error { return d.inNetNS("sk_lookup_pass", nothing) },
		"tracepoint": func(d direct) error { return d.loaded("tracepoint", d.tracepoint) },
		"rawTracepoint": func(d direct) error {
			return d.loaded("raw_tracepoint", func(p *ebpf.Program) error {
				return end(link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec", Program: p}))
			})
		},
		"uprobe": func(d direct) error { return d.loaded("kprobe", d.uprobe) },
		"perfEvent": func(d direct) error {
			return d.loaded("perf_event_sample", func(p *ebpf.Program) error {
				return perf(p, unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CPU_CLOCK)
			})
		},
		"kprobe":   func(d direct) error { return d.loaded("kprobe", d.kprobe) },
		"iter":     func(d direct) error { return d.loaded("iter", d.iter) },
		"fentry":   func(d direct) error { return d.loaded("fentry", nothing) },
		"lsm":      func(d direct) error { return d.loaded("lsm", runsForFiles) },
		"freplace": direct.freplace,
		"cgroup":   func(d direct) error { return d.loaded("connect4", d.cgroup) },
	} {
		t.Run(name, func(t *testing.T) {
			check, ok := checks[name]
			if !ok {
				t.Fatalf("no check %q", name)
			}
			err := try(direct{t, spec})
			if check.OK != (err == nil) {
				t.Errorf("check says OK is %v (%s%s), a direct attempt %v", check.OK, check.Detail, check.Reason, err)
			}
			// The words may differ, the kernel's answer may not.
			if errors.Is(err, unix.EPERM) != strings.Contains(check.Reason, unix.EPERM.Error()) {
				t.Errorf("check says %q, a direct attempt %v", check.Reason, err)
			}
		})
	}
}
