// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/hook"
)

// VerifierError says why the kernel's verifier refuses a program.
type VerifierError struct {
	Program string
	// Line is the verifier's reason, and Source the line of the program's source that it was looking at, "" where the
	// object does not tell. Both come from others: quoted in Error, to be quoted elsewhere.
	Line, Source string
	// Log is all that the verifier wrote, many megabytes at worst.
	Log string

	cause error
}

func (e *VerifierError) Error() string {
	text := fmt.Sprintf("program %s: rejected by the kernel's verifier: %q", quote(e.Program), truncate(e.Line, maxText))
	if e.Source != "" {
		text += fmt.Sprintf(" at %q", truncate(e.Source, maxText))
	}
	return text + "; the verifier's own log is in bpfvol's"
}

func (e *VerifierError) Unwrap() error { return e.cause }

// maxTrace bounds the verifier's trace of a program. cilium/ebpf reads it whole, with a buffer that grows as far as it
// takes, and copies it; so a trace is asked for only where it will be shorter.
const maxTrace = 16 << 20

// perInstruction is the length of the verifier's words on one instruction (110 bytes on average, measured), beside the
// source that it quotes: a length that the object's author chooses.
const perInstruction = 128

// traceBytes estimates the length of a trace of n instructions of prog.
func traceBytes(prog *ebpf.ProgramSpec, n int) int {
	longest := 0
	for i := range prog.Instructions {
		if line := prog.Instructions[i].Source(); line != nil {
			longest = max(longest, len(line.String()))
		}
	}
	return n * (perInstruction + min(longest, 1024)) // what the kernel prints at once
}

// explain turns the error of a load without a log into one that says which program fails and why.
func explain(ctx context.Context, o *Object, opts Options, err error) error {
	if missing := missingTarget(o); missing != nil {
		return missing
	}
	var rejected *ebpf.VerifierError
	if !errors.As(err, &rejected) || errors.Is(err, syscall.ENOMEM) {
		return describeLoad(err)
	}
	spec := o.spec
	// Which program a collection begins with is random; the message is not.
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The statistics bring the verifier's reason without the trace.
		log, cause := loadAlone(spec, name, opts, ebpf.LogLevelStats)
		if cause == nil {
			continue
		}
		if len(log) == 0 {
			return refused(spec.Programs[name], cause)
		}
		e := &VerifierError{Program: name, Line: reason(log), Log: strings.Join(log, "\n"), cause: errnoOf(cause)}
		if n := processed(log); traceBytes(spec.Programs[name], n) > maxTrace {
			e.Log += fmt.Sprintf("\n(the trace of %d instructions is left out)", n)
		} else if trace, err := loadAlone(spec, name, opts, ebpf.LogLevelBranch); err != nil && len(trace) > 0 {
			e.Source, e.Log = source(trace), strings.Join(trace, "\n")
		}
		return e
	}
	return describeLoad(err)
}

// loadAlone loads one program with the maps that it uses, only for its log.
func loadAlone(spec *ebpf.CollectionSpec, name string, opts Options, level ebpf.LogLevel) (log []string, err error) {
	prog := spec.Programs[name]
	alone := &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{}, Programs: map[string]*ebpf.ProgramSpec{name: prog}}
	for i := range prog.Instructions {
		if m := spec.Maps[prog.Instructions[i].Reference()]; m != nil && prog.Instructions[i].IsLoadFromMap() {
			m = m.Copy()
			if m.Type == ebpf.ProgramArray || m.InnerMap != nil {
				m.Contents = nil // the verifier does not look
			}
			alone.Maps[prog.Instructions[i].Reference()] = m
		}
	}
	loaded, err := ebpf.NewCollectionWithOptions(alone, ebpf.CollectionOptions{
		Cache:    opts.Types,
		Programs: ebpf.ProgramOptions{LogLevel: level},
	})
	if err == nil {
		loaded.Close()
		return nil, nil
	}
	var rejected *ebpf.VerifierError
	if errors.As(err, &rejected) {
		log = rejected.Log
	}
	return log, err
}

// statistics are the lines that the verifier writes after its reason.
var statistics = regexp.MustCompile(`^(processed \d+ insns |verification time |stack depth |mark_precise|insns_total)`)

// reason is the verifier's last words before the statistics: two lines where there are two, as the last one alone
// often lacks the subject ("R1 offset is outside of the packet").
func reason(log []string) string {
	lines := slices.DeleteFunc(slices.Clone(log), func(l string) bool {
		return statistics.MatchString(l) || strings.TrimSpace(l) == ""
	})
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines[max(0, len(lines)-2):], ": ")
}

// source is the last line of source in a trace: "; return *p; @ prog.c:12".
func source(trace []string) string {
	for _, line := range slices.Backward(trace) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "; "); ok {
			return strings.TrimSpace(text)
		}
	}
	return ""
}

var processedLine = regexp.MustCompile(`^processed (\d+) insns `)

func processed(log []string) int {
	for _, line := range slices.Backward(log) {
		if m := processedLine.FindStringSubmatch(line); m != nil {
			n, _ := strconv.Atoi(m[1])
			return n
		}
	}
	return 0
}

// refused is for programs that the kernel turns away before it verifies them.
func refused(prog *ebpf.ProgramSpec, err error) error {
	errno := errnoOf(err)
	switch {
	case errors.Is(err, ebpf.ErrNotSupported):
		return &problem{text: fmt.Sprintf("program %s: %s", quote(prog.Name), printable(err.Error())), kind: ErrUnsupported, cause: err}
	case errors.Is(err, syscall.EPERM):
		return &problem{
			text: fmt.Sprintf("program %s: this kernel does not let bpfvol load programs of section %s (%s): %v; see bpfvol doctor",
				quote(prog.Name), quote(prog.SectionName), prog.Type, errno),
			kind: ErrUnsupported, cause: err,
		}
	case errors.Is(err, syscall.EINVAL):
		return &problem{
			text: fmt.Sprintf("program %s: this kernel does not know programs of section %s (%s) or a flag of theirs: %v; see bpfvol doctor",
				quote(prog.Name), quote(prog.SectionName), prog.Type, errno),
			kind: ErrUnsupported, cause: err,
		}
	}
	return fmt.Errorf("program %s: load: %w", quote(prog.Name), errno)
}

// describeLoad is for everything that is not about one program's instructions. The text of cilium/ebpf names the map
// or program.
func describeLoad(err error) error {
	text := "load: " + strings.Replace(printable(err.Error()), ": map create: ", ": ", 1)
	isErrno := errors.As(err, new(syscall.Errno))
	switch {
	case errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.E2BIG):
		text = strings.ReplaceAll(text, syscall.E2BIG.Error(), "over the kernel's limit") // "argument list too long"
		return &problem{text: text + "; ask for less, for example by mapEntries", kind: errnoOf(err), cause: err}
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, syscall.EPERM), lacksKernel(err):
		return &problem{text: text + "; see bpfvol doctor", kind: ErrUnsupported, cause: err}
	case !isErrno, errors.Is(err, syscall.EINVAL):
		return &problem{text: text, kind: ErrInvalid, cause: err}
	}
	return &problem{text: text, kind: errnoOf(err), cause: err}
}

// missingTarget names the first hook that this kernel has not, and that it wants to know of when a program is loaded.
func missingTarget(o *Object) error {
	for _, a := range o.attach {
		if o.spec.Programs[a.Program].AttachTo == "" {
			continue // it can be loaded anywhere
		}
		if err := hook.CheckTarget(a.Hook); err != nil {
			return fmt.Errorf("program %s: %w", quote(a.Program), err)
		}
	}
	return nil
}

// lacksKernel says whether the object asks for a configuration option or symbol that this kernel has not, or has with
// another type. cilium/ebpf says so in words only.
func lacksKernel(err error) bool {
	return slices.ContainsFunc([]string{": resolve .kconfig: ", ": resolve .ksyms: ", ": fixing up kfuncs: kfunc "}, func(words string) bool {
		return strings.Contains(err.Error(), words)
	})
}

// errnoOf is the kernel's answer without the words around it.
func errnoOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
