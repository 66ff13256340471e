// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/e2e/vm/protocol"
)

// judged returns the failures after the outcomes of tests on kernels, given as "kernel test action".
func judged(t *testing.T, outcomes ...string) []string {
	t.Helper()
	m := matrix{tests: map[testName]map[string]outcome{}}
	for _, o := range outcomes {
		f := strings.Fields(o)
		if err := m.add(f[0], []byte(`{"Action":"`+f[2]+`","Package":"p","Test":"`+f[1]+`"}`)); err != nil {
			t.Fatal(err)
		}
	}
	m.judgeSkipped()
	return m.failures
}

func TestSkippedEverywhereFails(t *testing.T) {
	got := judged(t,
		"host TestOnHost pass", "6.1 TestOnHost skip",
		"host TestInVM skip", "6.1 TestInVM pass",
		"host TestNowhere skip", "6.1 TestNowhere skip",
		"host TestSome pass", "host TestSome/never skip", "6.1 TestSome pass", "6.1 TestSome/never skip",
		"6.1 TestFails fail")
	want := []string{
		"6.1: p TestFails",
		"everywhere: p TestNowhere: no kernel of host, 6.1 ran it",
		"everywhere: p TestSome/never: no kernel of host, 6.1 ran it",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A test binary that ends badly after its last test, as bpftest.Main does when something is left behind, fails.
func TestExitStatusDecides(t *testing.T) {
	test2json := filepath.Join(t.TempDir(), "test2json")
	if _, err := output("go", "build", "-o", test2json, "cmd/test2json"); err != nil {
		t.Fatal(err)
	}
	const text = "\x16=== RUN   TestX\n\x16--- PASS: TestX (0.00s)\n\x16=== NAME  \nPASS\nleft behind: program 7\n"
	for status, want := range map[int][]string{0: nil, 1: {"6.1: p"}} {
		m := matrix{tests: map[testName]map[string]outcome{}}
		o := &packageOutput{pkg: "p", status: status}
		o.text.WriteString(text)
		if err := m.addOutput(t.Context(), "6.1", test2json, o); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, m.failures); diff != "" {
			t.Errorf("status %d: %s", status, diff)
		}
		if got := m.tests[testName{"p", "TestX"}]["6.1"].action; got != "pass" {
			t.Errorf("TestX: %q", got)
		}
	}
}

func TestProtocolTellsItsLinesFromOutput(t *testing.T) {
	for _, test := range []struct{ line, verb, argument string }{
		{protocol.Start("example.com/p") + "\n", "start", "example.com/p"},
		{protocol.End(137) + "\n", "end", "137"},
		{protocol.Done + "\n", "done", ""},
		{"\x16=== RUN   TestX\n", "", ""},
		{"start p\n", "", ""},
		{"", "", ""},
	} {
		if verb, argument := protocol.Line(test.line); verb != test.verb || argument != test.argument {
			t.Errorf("%q: got %q %q", test.line, verb, argument)
		}
	}
}
