// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/bpfvol/bpfvol/e2e/vm/protocol"
)

// errDied is the end of a machine that did not finish its tests, through no fault of theirs as far as one can tell.
var errDied = errors.New("the machine died")

// output of the tests of one package.
type packageOutput struct {
	pkg    string
	status int // of the test binary; -1 while it runs
	text   bytes.Buffer
	took   time.Duration
}

// boot starts a machine with a kernel, options for it beside those that all have, and a file system, which runs the
// packages from number first on. It calls ended with each as its tests end. log receives what the kernel says.
//
// There is no KVM where CI runs, so the machine is emulated, and two of its faults are worked round (QEMU 7.2): with
// thread=multi both processors of a 6.1 once waited for each other for good, and with cx16 three of fifteen boots of 6.12
// ended in a double fault after cmpxchg16b. -no-reboot and panic=-1 make a panic end QEMU, and softlockup_panic a panic
// of a processor that hangs. tsc=reliable keeps the kernel from doubting an emulated clock; mitigations=off makes system
// calls cheap, and rcu_expedited the end of an attachment.
func boot(ctx context.Context, kernel, options, initrd, log string, first int, ended func(*packageOutput) error) error {
	images, err := filepath.Glob(filepath.Join(kernel, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("%s has %d kernels, want one (%w)", kernel, len(images), err)
	}
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "max,cx16=off",
		"-m", "3072", "-smp", "2", "-display", "none", "-nodefaults", "-no-reboot",
		"-serial", "file:"+log, "-serial", "stdio", "-kernel", images[0], "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 softlockup_panic=1 watchdog_thresh=30 mitigations=off rcupdate.rcu_expedited=1 tsc=reliable random.trust_cpu=1 "+options+" rdinit=/init -- "+strconv.Itoa(first))
	qemu.Stderr = os.Stderr
	qemu.WaitDelay = 5 * time.Second
	out, err := qemu.StdoutPipe()
	if err != nil {
		return err
	}
	if err := qemu.Start(); err != nil {
		return err
	}
	done := false
	var current *packageOutput
	var start time.Time
	for in := bufio.NewReader(out); ; {
		line, err := in.ReadString('\n')
		switch verb, argument := protocol.Line(line); {
		case verb == "start":
			start = time.Now()
			current = &packageOutput{pkg: argument, status: -1}
		case verb == "end" && current != nil:
			current.status, _ = strconv.Atoi(argument)
			current.took = time.Since(start)
			if err := ended(current); err != nil {
				return errors.Join(err, qemu.Cancel(), qemu.Wait())
			}
			current = nil
		case verb == "done":
			done = true
		case current != nil:
			current.text.WriteString(line)
		}
		if err != nil {
			break
		}
	}
	err = qemu.Wait()
	if done {
		return nil
	}
	if current != nil {
		fmt.Printf("vm: the last words of %s:\n%s\n", current.pkg, tail(current.text.Bytes()))
	}
	if words, err := os.ReadFile(log); err == nil {
		fmt.Printf("vm: the last words of the kernel:\n%s\n", tail(words))
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the machine did not finish: %w", ctx.Err())
	}
	return fmt.Errorf("%w (qemu: %v)", errDied, err)
}

// tail returns the end of a text.
func tail(text []byte) []byte { return text[max(0, len(text)-4000):] }
