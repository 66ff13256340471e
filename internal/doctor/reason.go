// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/hook"
)

// problem is a negative answer that the check itself can put in words.
type problem struct{ reason, fix string }

func (p *problem) Error() string { return p.reason }

// errNotSupported is ENOTSUPP, which the kernel returns though user space has no name for it (include/linux/errno.h).
const errNotSupported = unix.Errno(524)

// notBuiltIn are the kernel's answers to what it has never heard of.
var notBuiltIn = []error{
	ebpf.ErrNotSupported, unix.EINVAL, unix.EOPNOTSUPP, errNotSupported, unix.ENOSYS, unix.ENODEV, unix.EPROTONOSUPPORT,
	os.ErrNotExist, hook.ErrMissing,
}

// explain puts a negative answer in words: the kernel's own, what it means in this process, and what would help.
func (p process) explain(pr probe, err error) (reason, fix string) {
	if own := new(problem); errors.As(err, &own) {
		return own.reason, own.fix
	}
	if refused := new(hook.RefusedError); errors.As(err, &refused) {
		err = refused.Err
	}
	said := oneLine(err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return "not tried: " + said, "ask again"
	}
	if errors.Is(err, os.ErrPermission) {
		return p.explainRefusal(pr, said)
	}
	for _, answer := range notBuiltIn {
		if errors.Is(err, answer) {
			return said + ": this kernel lacks it", "a kernel with " + pr.kernel
		}
	}
	return said, "see the kernel's log; this answer is none that bpfvol knows"
}

// explainRefusal tells a process that lacks a capability from a kernel that refuses those who have it.
func (p process) explainRefusal(pr probe, said string) (reason, fix string) {
	needs := pr.caps
	if pr.netns {
		needs = append([]capability{unix.CAP_SYS_ADMIN}, needs...)
	}
	if lacks := p.lacks(needs); len(lacks) > 0 {
		return said + ": this process has no " + names(lacks), "run as root, in a pod privileged, or with " + names(lacks)
	}
	if p.inUserNamespace {
		return said + ": the capabilities of this process count in its user namespace only", "run outside the user namespace (in a pod: hostUsers: true)"
	}
	var suspects []string
	if p.seccomp {
		suspects = append(suspects, "the seccomp filter on this process")
	}
	if p.lockdown != "" && p.lockdown != "none" {
		suspects = append(suspects, "lockdown ("+p.lockdown+")")
	}
	if len(p.modules) > 0 {
		suspects = append(suspects, "a security module ("+strings.Join(p.modules, ", ")+")")
	}
	suspects = append(suspects, "a restriction built into this kernel")
	return fmt.Sprintf("%s, though this process has every capability for it: refused by %s", said, strings.Join(suspects, " or ")),
		"change the node's security policy or kernel; more privileges do not help"
}

// advice is what cilium/ebpf adds to every EPERM. Memory has its own check.
const advice = " (MEMLOCK may be too low, consider rlimit.RemoveMemlock)"

// oneLine bounds a message that may carry a verifier's log.
func oneLine(err error) string {
	const longest = 300
	line, _, _ := strings.Cut(strings.ReplaceAll(err.Error(), advice, ""), "\n")
	if len(line) > longest {
		line = strings.ToValidUTF8(line[:longest], "") + "..."
	}
	return line
}
