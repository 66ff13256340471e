// SPDX-License-Identifier: Apache-2.0

// Vm runs the kernel tests on this machine and, in virtual machines that QEMU emulates, on the kernels of Debian
// stable releases. It fails if a test fails anywhere, or if a test was skipped everywhere: such a test shows nothing.
//
//	go run ./e2e/vm                          # every kernel, every kernel test package
//	go run ./e2e/vm -kernel 6.1 ./loader     # one of each; what is skipped is not judged
//
// The tests are the ordinary ones, compiled once and run unchanged. A machine's file system is an archive in memory
// (root.go): this machine's sh, ip, clang and so on at their usual places, the packages' directories, and init (e2e/vm/init), which
// runs the tests and writes their output to a serial port (e2e/vm/protocol).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// kernel is one of the matrix, the Debian suite that has it, and what it is booted with beside what all are.
type kernel struct{ version, suite, options string }

// kernels are those of the matrix beside this machine's own. 6.1 is what Debian 12 runs; 6.12 is what Debian 13 runs, here
// as built for Debian 12. The one boots without BPF's security module, as nodes do that set lsm= to something of their own;
// the other with SELinux, for which a test loads a policy.
var kernels = []kernel{
	{"6.1", "bookworm", "lsm=landlock,lockdown,yama"},
	{"6.12", "bookworm-backports", "security=selinux enforcing=0"},
}

// kernelTests are the packages whose tests ask the kernel.
var kernelTests = []string{
	"./bpf",
	"./bpf/members",
	"./dispatcher",
	"./dispatcher/fuse",
	"./internal/bpftest",
	"./internal/doctor",
	"./internal/hook",
	"./internal/host",
	"./internal/kernelstate",
	"./internal/libxdp",
	"./internal/node",
	"./internal/pin",
	"./internal/podfs",
	"./internal/podfs/mapjson",
	"./loader",
}

// cache keeps unpacked kernels.
const cache = ".cache/vm"

// bootTimeout is how long a machine may take for all packages.
const bootTimeout = 60 * time.Minute

func main() {
	only := flag.String("kernel", "", "run on this kernel alone, without judging what is skipped")
	tests := flag.String("run", ".", "run the tests that match this `regexp` alone, as go test -run does")
	verbose := flag.Bool("v", false, "show the output of every test, not only of failed ones")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	packages := flag.Args()
	if len(packages) == 0 {
		packages = kernelTests
	}
	ok, err := run(ctx, *only, packages, *tests, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

// run reports whether every test of the packages passed on every kernel, and each ran on one of them.
func run(ctx context.Context, only string, patterns []string, testRun string, verbose bool) (ok bool, err error) {
	work, err := os.MkdirTemp("", "bpfvol-vm-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(work)
	tests, err := build(work, patterns, testRun)
	if err != nil {
		return false, err
	}
	m := matrix{verbose: verbose, tests: map[testName]map[string]outcome{}}
	if only == "" {
		if err := m.host(ctx, patterns, testRun); err != nil {
			return false, err
		}
	}
	found := false
	machines, ctx := errgroup.WithContext(ctx)
	for _, k := range kernels {
		if only != "" && only != k.version {
			continue
		}
		found = true
		machines.Go(func() error {
			if err := m.guest(ctx, tests, k); err != nil {
				return fmt.Errorf("kernel %s: %w", k.version, err)
			}
			return nil
		})
	}
	if !found {
		return false, fmt.Errorf("kernel %s is not in the matrix, which has %v", only, kernels)
	}
	if err := machines.Wait(); err != nil {
		return false, err
	}
	m.printSkipped()
	if only == "" {
		m.judgeSkipped()
	}
	for _, f := range m.failures {
		fmt.Println("FAIL", f)
	}
	return len(m.failures) == 0, nil
}

// pkg is a package with tests.
type pkg struct{ path, dir, binary string }

// built is what machines run.
type built struct {
	work, init, test2json string
	run                   string // pattern of the tests' names
	packages              []pkg
}

// build compiles the tests of packages, and what runs and reads them.
func build(work string, patterns []string, testRun string) (built, error) {
	b := built{work: work, run: testRun, init: filepath.Join(work, "init"), test2json: filepath.Join(work, "test2json")}
	for _, args := range [][]string{
		{"build", "-trimpath", "-ldflags=-s -w", "-o", b.init, "./e2e/vm/init"},
		{"build", "-o", b.test2json, "cmd/test2json"},
	} {
		if _, err := output("go", args...); err != nil {
			return built{}, err
		}
	}
	const format = "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}"
	list, err := output("go", append([]string{"list", "-f", format}, patterns...)...)
	if err != nil {
		return built{}, err
	}
	here, err := os.Getwd()
	if err != nil {
		return built{}, err
	}
	for line := range strings.Lines(list) {
		path, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if dir, err = filepath.Rel(here, dir); err != nil {
			return built{}, err
		}
		p := pkg{path: path, dir: filepath.ToSlash(dir), binary: filepath.Join(work, fmt.Sprintf("%d.test", len(b.packages)))}
		if _, err := output("go", "test", "-c", "-ldflags=-w", "-o", p.binary, path); err != nil {
			return built{}, err
		}
		b.packages = append(b.packages, p)
	}
	if len(b.packages) == 0 {
		return built{}, fmt.Errorf("no tests in %s", strings.Join(patterns, " "))
	}
	return b, nil
}

// host runs the tests on this machine's kernel.
func (m *matrix) host(ctx context.Context, patterns []string, testRun string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	release := unix.ByteSliceToString(u.Release[:])
	fmt.Printf("=== this machine, Linux %s\n", release)
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json", "-run", testRun}, patterns...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.Output() // a failed test is among the events
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return err
	}
	return m.add("host", events)
}

// guest runs the tests on another kernel. A machine that dies is given a second chance: emulated ones do, sometimes.
func (m *matrix) guest(ctx context.Context, b built, k kernel) error {
	dir := filepath.Join(cache, k.version)
	release, err := output("e2e/vm/kernel.sh", k.suite, dir)
	if err != nil {
		return err
	}
	release = strings.TrimSpace(release)
	if !strings.HasPrefix(release, k.version+".") {
		return fmt.Errorf("suite %s of Debian has Linux %s now; see kernels in e2e/vm", k.suite, release)
	}
	fmt.Printf("=== virtual machine, Linux %s\n", release)
	initrd := filepath.Join(b.work, k.version+".cpio")
	if err := buildRoot(initrd, dir, b); err != nil {
		return err
	}
	defer os.Remove(initrd)
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	ended := 0
	start := func() error {
		return boot(ctx, dir, k.options, initrd, filepath.Join(cache, k.version+".log"), ended, func(o *packageOutput) error {
			ended++
			return m.addOutput(ctx, k.version, b.test2json, o)
		})
	}
	if err = start(); errors.Is(err, errDied) {
		fmt.Printf("vm: %v; once more, from %s on\n", err, b.packages[min(ended, len(b.packages)-1)].path)
		err = start()
	}
	return err
}
