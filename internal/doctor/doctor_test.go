// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/host"
	"github.com/bpfvol/bpfvol/internal/privilege"
)

// reportEnv makes a process that a test starts from its own binary print a report instead of running tests.
const reportEnv = "BPFVOL_DOCTOR_REPORT"

// dropped is the value of reportEnv for a report of who has given up what the daemon gives up.
const dropped = "dropped"

func TestMain(m *testing.M) {
	if env := os.Getenv(reportEnv); env != "" {
		if env == dropped {
			if err := privilege.Drop(false); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		if err := json.NewEncoder(os.Stdout).Encode(Run(context.Background(), "")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	bpftest.Main(m)
}

func TestRunLeavesNothing(t *testing.T) {
	bpftest.Root(t)
	bpftest.NothingLeft(t, "/sys/fs/bpf")
	Run(t.Context(), "")
	if at, err := findCgroup2(); err == nil {
		own, err := ownCgroup()
		if err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(at, own, "bpfvol-doctor-*")); left != nil {
			t.Errorf("cgroups left: %q", left)
		}
	}
}

func TestRunIsQuick(t *testing.T) {
	start := time.Now()
	Run(t.Context(), "")
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Run took %v, want less than 3 s", took)
	}
}

// report runs this package's Run in a process with other privileges.
func report(t *testing.T, attr *syscall.SysProcAttr) map[string]Check {
	t.Helper()
	return reportAs(t, "1", attr)
}

func reportAs(t *testing.T, who string, attr *syscall.SysProcAttr) map[string]Check {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), reportEnv+"="+who)
	cmd.SysProcAttr = attr
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("report: %v\n%s", err, stderr.Bytes())
	}
	var list []Check
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("report: %v\n%s", err, out)
	}
	return byName(list)
}

func byName(list []Check) map[string]Check {
	checks := map[string]Check{}
	for _, c := range list {
		checks[c.Name] = c
	}
	return checks
}

func TestRunReportsWithoutPrivileges(t *testing.T) {
	bpftest.Root(t)
	for name, c := range map[string]struct {
		attr *syscall.SysProcAttr
		why  string // in every refusal
	}{
		"nobody": {&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, "this process has no CAP_"},
		"root of a user namespace": {&syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}},
			Credential:  &syscall.Credential{NoSetGroups: true},
		}, "count in its user namespace only"},
	} {
		t.Run(name, func(t *testing.T) {
			checks := report(t, c.attr)
			if len(checks) != len(probes(process{})) {
				t.Errorf("%d checks, want %d", len(checks), len(probes(process{})))
			}
			for _, check := range checks {
				if check.OK {
					if check.Detail == "" {
						t.Errorf("%s: no detail", check.Name)
					}
					continue
				}
				if check.Reason == "" || check.Fix == "" {
					t.Errorf("%s: reason %q, fix %q; want both", check.Name, check.Reason, check.Fix)
				}
				if strings.Contains(check.Reason, "operation not permitted") && !strings.Contains(check.Reason, c.why) &&
					!strings.Contains(check.Reason, "its state cannot be read") {
					t.Errorf("%s: reason %q does not say %q", check.Name, check.Reason, c.why)
				}
			}
			for _, name := range []string{"xdp", "tracepoint", "bpffs"} {
				if checks[name].OK {
					t.Errorf("%s works: %s", name, checks[name].Detail)
				}
			}
			if !checks["kernel"].OK {
				t.Errorf("kernel: %s", checks["kernel"].Reason)
			}
		})
	}
	nobody := report(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}})
	if want := "uid 65534 has no CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYSLOG, CAP_CHOWN"; nobody["process"].Reason != want {
		t.Errorf("process: reason %q, want %q", nobody["process"].Reason, want)
	}
	if got, want := nobody["xdp"].Reason, "make a network namespace: operation not permitted: this process has no CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF"; got != want {
		t.Errorf("xdp: reason %q, want %q", got, want)
	}
}

// What the daemon keeps of root's capabilities is enough for every hook of this kernel.
func TestNeededCapabilitiesAreEnough(t *testing.T) {
	bpftest.Root(t)
	less := reportAs(t, dropped, nil)
	for name, all := range report(t, nil) {
		// The daemon asks for no token and makes no cgroup: the one takes CAP_BPF, the other CAP_DAC_OVERRIDE in the root cgroup.
		if own, err := ownCgroup(); name == "token" || name == "cgroup" && (own == "." || err != nil) {
			continue
		}
		if got := less[name]; all.OK && !got.OK {
			t.Errorf("%s works for root; with what the daemon keeps: %s", name, got.Reason)
		}
	}
}

func TestPlaceSaysWhetherTheNodeIsReached(t *testing.T) {
	node := fmt.Sprintf("/proc/%d", bpftest.Process(t, syscall.CLONE_NEWNS))
	place := func(node string) Check { return byName(Run(t.Context(), host.Process(node)))["place"] }
	if got, want := place(node), "the mount and network namespace of "+node+"; this process is in others"; !got.OK || got.Detail != want {
		t.Errorf("got %+v, want %q", got, want)
	}
	if got, want := place("/proc/0"), "host process: open /proc/0/ns/net: no such file or directory"; got.OK || !strings.Contains(got.Reason, want) {
		t.Errorf("got %+v, want %q", got, want)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	for _, c := range Run(ctx, "") {
		if want := "not tried: context canceled"; c.OK || c.Reason != want {
			t.Errorf("%s: reason %q, want %q", c.Name, c.Reason, want)
		}
	}
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("Run took %v after its context", took)
	}
}

func TestHungCheckIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	hung := probe{name: "hung", try: func() (string, error) { <-release; return "", nil }}
	c := hung.run(t.Context(), process{}, 10*time.Millisecond)
	if want := "no answer within 10ms"; c.OK || c.Reason != want {
		t.Errorf("reason %q, want %q", c.Reason, want)
	}
}

func TestReasonsSayWhatTheAnswerMeans(t *testing.T) {
	pr := probe{kernel: "CONFIG_X", caps: []capability{unix.CAP_NET_ADMIN, unix.CAP_BPF}}
	root := process{caps: 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN}
	locked := process{caps: root.caps, seccomp: true, lockdown: "integrity", modules: []string{"yama", "bpf"}}
	for name, c := range map[string]struct {
		p           process
		err         error
		reason, fix string
	}{
		"missing capability": {process{caps: 1 << unix.CAP_BPF}, fmt.Errorf("attach: %w", unix.EPERM),
			"attach: operation not permitted: this process has no CAP_NET_ADMIN", "run as root, in a pod privileged, or with CAP_NET_ADMIN"},
		"CAP_SYS_ADMIN stands for CAP_BPF": {root, unix.EPERM,
			"operation not permitted, though this process has every capability for it: refused by a restriction built into this kernel",
			"change the node's security policy or kernel; more privileges do not help"},
		"policy": {locked, unix.EPERM,
			"operation not permitted, though this process has every capability for it: refused by the seccomp filter on this process or lockdown (integrity) or a security module (yama, bpf) or a restriction built into this kernel",
			"change the node's security policy or kernel; more privileges do not help"},
		"not built in": {root, fmt.Errorf("attach: %w", unix.EINVAL), "attach: invalid argument: this kernel lacks it", "a kernel with CONFIG_X"},
		"no advice of libraries": {process{}, fmt.Errorf("load program: %w"+advice, unix.EPERM),
			"load program: operation not permitted: this process has no CAP_NET_ADMIN, CAP_BPF", "run as root, in a pod privileged, or with CAP_NET_ADMIN, CAP_BPF"},
		"one line": {root, fmt.Errorf("load: bad%s", "\nverifier log\n"), "load: bad", "see the kernel's log; this answer is none that bpfvol knows"},
		"long":     {root, errors.New(strings.Repeat("x", 1000)), strings.Repeat("x", 300) + "...", "see the kernel's log; this answer is none that bpfvol knows"},
	} {
		t.Run(name, func(t *testing.T) {
			reason, fix := c.p.explain(pr, c.err)
			if reason != c.reason || fix != c.fix {
				t.Errorf("got\n %q\n %q\nwant\n %q\n %q", reason, fix, c.reason, c.fix)
			}
		})
	}
}
