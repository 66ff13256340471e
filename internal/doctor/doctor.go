// SPDX-License-Identifier: Apache-2.0

// Package doctor says what this kernel lets this process do of what bpfvol needs, by doing it: programs are loaded and
// attached, file systems mounted, pins read. A version or a configuration says what a kernel could do; lockdown, a
// seccomp filter, missing capabilities and vendors' patches decide what it does.
//
//	for _, c := range doctor.Run(ctx, "/proc/1") {
//		fmt.Println(c.Name, c.OK, c.Detail, c.Reason, c.Fix)
//	}
//
// Every check runs on an OS thread of its own that ends with it, so it may change its network namespace or give up its
// capabilities. What attaches to a network device does so in a fresh network namespace, what attaches to a cgroup in a
// fresh cgroup, and file systems are mounted where no path leads.
//
// Invariants:
//   - a check says what a direct attempt would have said (TestChecksAgreeWithDirectAttempts);
//   - nothing is left behind (TestRunLeavesNothing);
//   - a process without privileges gets a report, not an error (TestRunReportsWithoutPrivileges);
//   - every negative answer has a reason and a fix (same test);
//   - Run ends soon after its context, and no check holds it up (TestRunEndsWithItsContext, TestHungCheckIsGivenUp).
package doctor

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/host"
)

// Check is the answer to one question.
type Check struct {
	Name   string `json:"name"`
	What   string `json:"what"` // what in bpfvol needs it
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"` // what works: "native on veth, generic on lo"
	Reason string `json:"reason,omitempty"` // why it does not: the kernel's own answer and what it means
	Fix    string `json:"fix,omitempty"`
	Needed bool   `json:"needed"` // bpfvol cannot work without it
}

// probe is one question.
type probe struct {
	name, what string
	needed     bool
	netns      bool         // run in a fresh network namespace
	caps       []capability // what the kernel asks for
	kernel     string       // what a kernel that can do it was built or booted with
	try        func() (detail string, err error)
}

// patience is how long one check may take. Most take a millisecond, those that attach to a device or read the kernel's BTF
// tens of them; under emulation a hundred times that.
const patience = 10 * time.Second

// Run asks every question, one after another, since some of the answers compete for the kernel's locks. A node process is
// for a node plugin in a container; empty: it is on the node.
func Run(ctx context.Context, node host.Process) []Check {
	p := thisProcess()
	p.host = node
	var checks []Check
	for _, pr := range probes(p) {
		checks = append(checks, pr.run(ctx, p, patience))
	}
	return checks
}

// probes are in the order of the report: who asks, what everything builds on, then hook by hook.
func probes(p process) []probe {
	list := []probe{
		{name: "process", what: "everything", needed: true, try: p.identity},
		{name: "place", what: "where volumes are mounted and programs attached", needed: true, caps: hostCapabilities, try: p.place},
		{name: "kernel", what: "everything", needed: true, try: kernelRelease},
		{name: "lockdown", what: "programs that read kernel memory", kernel: "a boot without lockdown=confidentiality", try: p.lockdownState},
		{name: "load", what: "everything", needed: true, caps: []capability{unix.CAP_BPF}, kernel: "CONFIG_BPF_SYSCALL", try: tryLoad},
		{name: "memory", what: "maps larger than RLIMIT_MEMLOCK", caps: []capability{unix.CAP_BPF}, kernel: "CONFIG_MEMCG, version 5.11 or later", try: tryMemory},
		{name: "btf", what: "json/ in volumes, hooks iter, fentry and lsm, programs built for every kernel (CO-RE)", kernel: "CONFIG_DEBUG_INFO_BTF", try: tryBTF},
		{name: "stats", what: "run times in status and metrics", caps: []capability{unix.CAP_SYS_ADMIN}, kernel: "CONFIG_BPF_SYSCALL, version 5.8 or later", try: tryStats},
	}
	list = append(list, bpffsProbes(p.host)...)
	list = append(list, networkProbes()...)
	list = append(list, tracingProbes()...)
	list = append(list, trampolineProbes(p)...)
	return append(list, cgroupProbes(p.host)...)
}

// run asks one question and puts the answer in words.
func (pr probe) run(ctx context.Context, p process, patience time.Duration) Check {
	c := Check{Name: pr.name, What: pr.what, Needed: pr.needed}
	tooLong := &problem{fmt.Sprintf("no answer within %v", patience), "ask again when the node is less busy"}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, tooLong)
	defer cancel()
	detail, err := pr.onThread(ctx)
	if err != nil {
		c.Reason, c.Fix = p.explain(pr, err)
		return c
	}
	c.OK, c.Detail = true, detail
	return c
}

// onThread runs the check on a thread that no other goroutine will ever run on. Nothing can interrupt a system call:
// when ctx ends first, the check finishes and cleans up unheard.
func (pr probe) onThread(ctx context.Context) (string, error) {
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	type answer struct {
		detail string
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var a answer
		if pr.netns {
			a.err = unix.Unshare(unix.CLONE_NEWNET)
		}
		if a.err != nil {
			a.err = fmt.Errorf("make a network namespace: %w", a.err)
		} else {
			a.detail, a.err = pr.try()
		}
		answers <- a
	}()
	select {
	case a := <-answers:
		return a.detail, a.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}
