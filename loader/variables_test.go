// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// seen is struct copy of variables.bpf.c: what the program saw of its variables.
type seen struct {
	Verdict   uint32
	Small     int8
	Enabled   bool
	Name      [16]byte
	Ports     [4]uint16
	From, To  uint16
	Strict    bool
	_         [1]byte
	Level     int32
	Threshold uint64
	Total     int64
	Tuned     uint32
	_         [4]byte
}

func withVariables(t testing.TB, values map[string]any) volume.Spec {
	return volume.Spec{Attach: attach(t, "{program: report, xdp: eth0}"), Variables: values}
}

func report(t *testing.T, values map[string]any) (verdict uint32, s seen) {
	t.Helper()
	c := load(t, mustParse(t, bpf.Variables(), withVariables(t, values)))
	verdict = run(t, c.Programs["report"])
	raw, err := c.Maps["seen"].LookupBytes(uint32(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := binary.Decode(raw, binary.NativeEndian, &s); err != nil {
		t.Fatal(err)
	}
	return verdict, s
}

func text(s string) (b [16]byte) {
	copy(b[:], s)
	return b
}

func TestVariablesKeepTheirInitialValues(t *testing.T) {
	verdict, got := report(t, nil)
	want := seen{Verdict: 2, Small: -1, Name: text("default"), Level: -1, Threshold: 7, Tuned: 3}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(seen{})); diff != "" || verdict != 2 {
		t.Error(verdict, diff)
	}
}

func TestProgramSeesVariablesThatWereSet(t *testing.T) {
	verdict, got := report(t, map[string]any{
		"verdict":   int64(1),
		"small":     int64(-128),
		"enabled":   true,
		"name":      "eth0",
		"ports":     []any{int64(80), int64(443)},
		"limits":    map[string]any{"ports": map[string]any{"from": int64(1024), "to": int64(65535)}, "strict": true},
		"level":     "HIGH",
		"threshold": uint64(1<<64 - 1),
		"total":     int64(-1 << 63),
		"tuned":     int64(0),
	})
	want := seen{
		Verdict: 1, Small: -128, Enabled: true, Name: text("eth0"), Ports: [4]uint16{80, 443}, From: 1024, To: 65535,
		Strict: true, Level: 1, Threshold: 1<<64 - 1, Total: -1 << 63,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(seen{})); diff != "" || verdict != 1 {
		t.Error(verdict, diff)
	}
}

// The bytes are those that the signature covers, and shared with the cache.
func TestParseLeavesTheObjectsBytes(t *testing.T) {
	object := bpf.Variables()
	mustParse(t, object, withVariables(t, map[string]any{"verdict": int64(1), "threshold": int64(1)}))
	if !bytes.Equal(object, bpf.Variables()) {
		t.Error("parse changed the object")
	}
}

// What a list or a map leaves out keeps its value.
func TestPartsThatAreNotNamedStay(t *testing.T) {
	_, got := report(t, map[string]any{"limits": map[string]any{"ports": map[string]any{"to": int64(5)}}, "level": int64(7)})
	want := seen{Verdict: 2, Small: -1, Name: text("default"), To: 5, Level: 7, Threshold: 7, Tuned: 3}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(seen{})); diff != "" {
		t.Error(diff)
	}
}

func TestVariableThatDoesNotFitIsRefused(t *testing.T) {
	tests := []struct {
		name  string
		value any
		text  string
	}{
		{"verdict", int64(1 << 32), `variable "verdict": 4294967296 is out of range; __u32 holds 0 to 4294967295`},
		{"verdict", int64(-1), `variable "verdict": -1 is out of range; __u32 holds 0 to 4294967295`},
		{"verdict", "pass", `variable "verdict": "pass" given; it is an integer (__u32)`},
		{"verdict", true, `variable "verdict": true given; it is an integer (__u32)`},
		{"verdict", 1.5, `variable "verdict": 1.5 given; it is an integer (__u32)`},
		{"verdict", nil, `variable "verdict": nothing given; it is an integer (__u32)`},
		{"small", int64(128), `variable "small": 128 is out of range; __s8 holds -128 to 127`},
		{"small", int64(-129), `variable "small": -129 is out of range; __s8 holds -128 to 127`},
		{"total", uint64(1 << 63), `variable "total": 9223372036854775808 is out of range; __s64 holds -9223372036854775808 to 9223372036854775807`},
		{"enabled", int64(1), `variable "enabled": 1 given; it is a bool; write true or false`},
		{"name", "this is more than 16", `variable "name": a string of 20 bytes does not fit; char[16] holds 16`},
		{"name", int64(1), `variable "name": 1 given; it is an array (char[16]); write a list`},
		{"ports", "80", `variable "ports": "80" given; it is an array (__u16[4]); write a list`},
		{"ports", []any{int64(1), int64(2), int64(3), int64(4), int64(5)}, `variable "ports": a list of 5 does not fit; __u16[4] holds 4`},
		{"ports", []any{int64(1), int64(70000)}, `variable "ports[1]": 70000 is out of range; __u16 holds 0 to 65535`},
		{"limits", []any{}, `variable "limits": a list given; it is struct limits; write a map of its members`},
		{"limits", map[string]any{"ports": map[string]any{"form": int64(1)}}, `variable "limits.ports": "form" is no member of struct range; it has: from, to; did you mean "from"?`},
		{"level", "MIDDLE", `variable "level": "MIDDLE" is no value of enum level; it has: LOW, HIGH`},
		{"treshold", int64(1), `variable "treshold" not in image; it has: enabled, level, limits, name, ports, small, threshold, total, tuned, verdict; did you mean "threshold"?`},
	}
	for _, test := range tests {
		_, err := parse(bpf.Variables(), withVariables(t, map[string]any{test.name: test.value}))
		wantError(t, err, ErrInvalid, test.text)
	}
}

const staticVariables = `
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct nested { union { __u32 word; __u8 bytes[4]; }; struct { __u16 low, high; }; __u32 bits : 3; };
static volatile struct nested nested;
static volatile __u32 result = 2;
static volatile __u32 twice = 1;
volatile __u8 matrix[2][3];
const volatile long pointer_sized;
void *volatile pointer;
__attribute__((noinline)) __u32 other(void) { static volatile const __u32 twice = 3; return twice; }
SEC("xdp") int p(void *ctx) {
	if (pointer || pointer_sized) return 0;
	return result + nested.word + nested.high + matrix[1][2] + twice - other() + 2 + nested.bits;
}
`

func TestStaticAndNestedVariables(t *testing.T) {
	object := bpftest.Clang(t, staticVariables)
	spec := volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")}
	if got := run(t, load(t, mustParse(t, object, spec)).Programs["p"]); got != 2 {
		t.Fatalf("got %d, want 2", got)
	}
	spec.Variables = map[string]any{
		"result": int64(10),
		"nested": map[string]any{"word": int64(100), "high": int64(1000)},
		"matrix": []any{[]any{}, []any{int64(1), int64(1), int64(200)}},
	}
	if got := run(t, load(t, mustParse(t, object, spec)).Programs["p"]); got != 1310 {
		t.Errorf("got %d, want 1310", got)
	}
	for _, test := range []struct {
		values map[string]any
		text   string
	}{
		{map[string]any{"pointer": int64(1)}, `variable "pointer": variables of type void * cannot be set`},
		{map[string]any{"nested": map[string]any{"bits": int64(1)}}, `variable "nested.bits": bit fields cannot be set`},
		{map[string]any{"pointer_sized": "x"}, `variable "pointer_sized": "x" given; it is an integer (long)`},
	} {
		spec.Variables = test.values
		_, err := parse(object, spec)
		wantError(t, err, ErrInvalid, test.text)
	}
}

func TestAmbiguousVariableListsItsSections(t *testing.T) {
	// Two files may each have a static variable of the same name; the linker keeps both.
	a := `static volatile int level = 1; __attribute__((section("xdp"))) int p(void *ctx) { return level; }`
	b := `static volatile const int level = 1; __attribute__((section("xdp"))) int q(void *ctx) { return level; }`
	object := link(t, bpftest.Clang(t, a), bpftest.Clang(t, b))
	spec := volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}"), Variables: map[string]any{"level": int64(1)}}
	_, err := parse(object, spec)
	wantError(t, err, ErrInvalid, `variable "level": ambiguous: it is in sections .data, .rodata; rename one in the source`)
}

func TestVariablesNeedBTF(t *testing.T) {
	object := bpftest.Clang(t, `volatile int level = 1; __attribute__((section("xdp"))) int p(void *ctx) { return level; }`, "-g0")
	spec := volume.Spec{Attach: attach(t, "{program: p, xdp: eth0}")}
	if got := run(t, load(t, mustParse(t, object, spec)).Programs["p"]); got != 1 {
		t.Errorf("got %d, want 1", got)
	}
	spec.Variables = map[string]any{"level": int64(2)}
	_, err := parse(object, spec)
	wantError(t, err, ErrInvalid, "variables: the object has no BTF, so their types are unknown; compile it with -g")
}
