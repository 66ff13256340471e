// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestVerifierErrorNamesProgramAndReason(t *testing.T) {
	bpftest.Root(t)
	o := mustParse(t, bpf.Rejected(), volume.Spec{Attach: attach(t, "{program: rejected, xdp: eth0}")})
	_, err := Load(t.Context(), o, Options{})
	var rejected *VerifierError
	if !errors.As(err, &rejected) {
		t.Fatalf("got %v", err)
	}
	if rejected.Program != "rejected" || !strings.Contains(rejected.Line, "R1 offset is outside of the packet") {
		t.Errorf("got %+v", rejected.Error())
	}
	if len(rejected.Log) < 1<<20 || !strings.Contains(rejected.Log, "R1 offset is outside of the packet") {
		t.Errorf("log has only %d bytes", len(rejected.Log))
	}
	if text := err.Error(); len(text) > 600 || strings.ContainsAny(text, "\n\t") {
		t.Errorf("not one short line: %q", text)
	}
	t.Log(err)
	if !errors.Is(err, syscall.EACCES) {
		t.Errorf("the kernel's answer got lost: %v", errors.Unwrap(err))
	}
}

// A program decides how long the log gets: by its loops, and by its source, which the log quotes again and again.
func TestVerifierLogIsBounded(t *testing.T) {
	bpftest.Root(t)
	const source = `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("xdp") int p(struct xdp_md *ctx) {
	volatile __u32 sum = 0;
	for (int i = 0; i < LOOPS; i++) COMMENT
		sum += *(volatile __u32 *)&ctx->rx_queue_index; COMMENT
	return sum + *(__u8 *)(long)ctx->data;
}`
	for name, replace := range map[string]*strings.Replacer{
		"loops":  strings.NewReplacer("LOOPS", "65536", "COMMENT", ""),
		"source": strings.NewReplacer("LOOPS", "8192", "COMMENT", "/*"+strings.Repeat("x", 2000)+"*/"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "program.h"), []byte(replace.Replace(source)), 0o600); err != nil {
				t.Fatal(err)
			}
			// Only lines of files are quoted, not those of standard input.
			checkBounded(t, bpftest.Clang(t, `#include "program.h"`, "-I"+dir))
		})
	}
}

func checkBounded(t *testing.T, object []byte) {
	t.Helper()
	o := mustParse(t, object, volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Load(t.Context(), o, Options{})
	runtime.ReadMemStats(&after)
	var rejected *VerifierError
	if !errors.As(err, &rejected) {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(rejected.Line, "R1 offset is outside of the packet") || !strings.Contains(rejected.Log, "is left out)") {
		t.Errorf("got %q with log %q", rejected.Line, truncate(rejected.Log, 500))
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
		t.Errorf("allocated %d MiB", got>>20)
	}
}

func TestFirstRejectedProgramIsNamedByOrder(t *testing.T) {
	bpftest.Root(t)
	object := bpftest.Clang(t, `
__attribute__((section("xdp"))) int a(void *ctx) { return 2; }
__attribute__((section("xdp"))) int b(void *ctx) { return *(volatile int *)0; }
__attribute__((section("xdp"))) int c(void *ctx) { return *(volatile int *)0; }`)
	o := mustParse(t, object, volume.Spec{Attach: attach(t, "[{program: c, xdp: eth0}, {program: b, xdp: eth1}, {program: a, xdp: eth2}]")})
	for range 5 {
		_, err := Load(t.Context(), o, Options{})
		var rejected *VerifierError
		if !errors.As(err, &rejected) || rejected.Program != "b" {
			t.Fatalf("got %v", err)
		}
	}
}

// The kernel looks for a program's target as it loads it. What is said does not depend on which program it began with.
func TestMissingTargetIsNamed(t *testing.T) {
	bpftest.Root(t)
	object := bpftest.Clang(t, `
char L[] __attribute__((section("license"))) = "GPL";
__attribute__((section("tp_btf/sched_switch"))) int a(void *ctx) { return 0; }
__attribute__((section("tp_btf/sched_swich"))) int b(void *ctx) { return 0; }
__attribute__((section("fentry/security_file_opn"))) int c(void *ctx) { return 0; }
__attribute__((section("lsm/file_opn"))) int d(void *ctx) { return 0; }
__attribute__((section("iter/taks"))) int e(void *ctx) { return 0; }`)
	for _, test := range []struct{ attach, text string }{
		{"[{program: a, rawTracepoint: sched_switch}, {program: b, rawTracepoint: sched_swich}, {program: d, lsm: file_opn}]",
			`program "b": raw tracepoint "sched_swich" does not exist; did you mean "sched_switch"?`},
		{"[{program: c, fentry: security_file_opn}, {program: d, lsm: file_opn}]",
			`program "c": kernel function "security_file_opn" does not exist; did you mean "security_file_open"?`},
		{"{program: d, lsm: file_opn}", `program "d": LSM hook "file_opn" does not exist; did you mean "file_open"?`},
		{"{program: e, iter: taks}", `program "e": iterator "taks" does not exist; did you mean "task"?`},
	} {
		o := mustParse(t, object, volume.Spec{Attach: attach(t, test.attach)})
		_, err := Load(t.Context(), o, Options{Types: types})
		wantError(t, err, hook.ErrMissing, test.text)
	}
}

func TestProgramTypeThatTheKernelRefusesIsNoVerifierError(t *testing.T) {
	bpftest.Root(t)
	object := bpftest.Clang(t, `char L[] __attribute__((section("license"))) = "GPL"; __attribute__((section("fentry/do_unlinkat"))) int p(void *ctx) { return 0; }`)
	o := mustParse(t, object, volume.Spec{})
	c, err := Load(t.Context(), o, Options{Types: types})
	if err == nil {
		c.Close()
		t.Skip("this kernel has BPF trampolines")
	}
	if !errors.Is(err, ErrUnsupported) || errors.As(err, new(*VerifierError)) {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}
