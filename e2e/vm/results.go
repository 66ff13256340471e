// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

// testName is a test or subtest.
type testName struct{ pkg, name string }

func (t testName) String() string {
	return strings.TrimPrefix(t.pkg, "github.com/bpfvol/bpfvol/") + " " + t.name
}

// outcome of a test on a kernel.
type outcome struct {
	action string // pass, fail or skip
	output string
}

// matrix is what every test did on every kernel.
type matrix struct {
	verbose bool

	mu       sync.Mutex
	tests    map[testName]map[string]outcome // by kernel
	kernels  []string                        // in the order they ran
	failures []string
}

// event is what test2json writes (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// addOutput takes in what the tests of one package wrote in a machine.
func (m *matrix) addOutput(ctx context.Context, kernel, test2json string, o *packageOutput) error {
	cmd := exec.CommandContext(ctx, test2json, "-p", o.pkg)
	cmd.Stdin = &o.text
	events, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("test2json: %w", err)
	}
	// Test2json judges by the words PASS and FAIL; what counts is the exit status.
	end := event{Action: "pass", Package: o.pkg, Elapsed: o.took.Seconds()}
	if o.status != 0 {
		end.Action = "fail"
	}
	last, err := json.Marshal(end)
	if err != nil {
		return err
	}
	return m.add(kernel, append(dropEnd(events), last...))
}

// dropEnd takes away the verdict over the package.
func dropEnd(events []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(events) {
		var e event
		if json.Unmarshal(line, &e) == nil && e.Test == "" && slices.Contains([]string{"pass", "fail", "skip"}, e.Action) {
			continue
		}
		kept = append(kept, line...)
	}
	return kept
}

// add takes in the events of test binaries on a kernel, which may be several at a time, and prints a line for each package.
func (m *matrix) add(kernel string, events []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.kernels, kernel) {
		m.kernels = append(m.kernels, kernel)
	}
	outputs := map[testName]string{}
	skipped := map[string]int{}
	running := map[testName]bool{}
	for decoder := json.NewDecoder(bytes.NewReader(events)); decoder.More(); {
		var e event
		if err := decoder.Decode(&e); err != nil {
			return fmt.Errorf("events of %s: %w", kernel, err)
		}
		t := testName{e.Package, e.Test}
		switch e.Action {
		case "run":
			running[t] = true
		case "output", "build-output":
			outputs[t] += e.Output
			if m.verbose || e.Action == "build-output" {
				fmt.Print(e.Output)
			}
		case "pass", "fail", "skip":
			if e.Test == "" {
				m.end(kernel, e, unfinished(e.Package, running, outputs)+outputs[t], skipped[e.Package])
				continue
			}
			delete(running, t)
			if e.Action == "skip" {
				skipped[e.Package]++
			}
			if e.Action == "fail" {
				fmt.Print(outputs[t])
				m.failures = append(m.failures, fmt.Sprintf("%s: %s", kernel, t))
			}
			if m.tests[t] == nil {
				m.tests[t] = map[string]outcome{}
			}
			m.tests[t][kernel] = outcome{e.Action, outputs[t]}
		}
	}
	return nil
}

// unfinished is what the tests said that were running when their package's binary ended: a panic, for example.
func unfinished(pkg string, running map[testName]bool, outputs map[testName]string) (said string) {
	for t := range running {
		if t.pkg == pkg {
			said += outputs[t]
		}
	}
	return said
}

// end prints the line of a package, and if it failed what it said outside of tests that ended.
func (m *matrix) end(kernel string, e event, output string, skipped int) {
	note := ""
	if skipped > 0 {
		note = fmt.Sprintf(" (%d skipped)", skipped)
	}
	fmt.Printf("%-4s %-5s %s %.1fs%s\n", map[string]string{"pass": "ok", "fail": "FAIL", "skip": "-"}[e.Action], kernel, e.Package, e.Elapsed, note)
	if e.Action == "fail" {
		fmt.Print(output)
		m.failures = append(m.failures, fmt.Sprintf("%s: %s", kernel, e.Package))
	}
}

// sorted returns the tests in order.
func (m *matrix) sorted() []testName {
	return slices.SortedFunc(maps.Keys(m.tests), func(a, b testName) int {
		return cmp.Or(strings.Compare(a.pkg, b.pkg), strings.Compare(a.name, b.name))
	})
}

// printSkipped lists what did not run where, and why.
func (m *matrix) printSkipped() {
	for _, t := range m.sorted() {
		for _, kernel := range m.kernels {
			if o := m.tests[t][kernel]; o.action == "skip" {
				fmt.Printf("skip %-5s %s: %s\n", kernel, t, reason(o.output))
			}
		}
	}
}

// judgeSkipped counts as failed what was skipped everywhere. A test that skips in one of its subtests alone is a pass
// by itself, so subtests are judged one by one.
func (m *matrix) judgeSkipped() {
	for _, t := range m.sorted() {
		ran := false
		for _, o := range m.tests[t] {
			ran = ran || o.action != "skip"
		}
		if !ran {
			m.failures = append(m.failures, fmt.Sprintf("everywhere: %s: no kernel of %s ran it", t, strings.Join(m.kernels, ", ")))
		}
	}
}

// reason is what a skipped test said: its last line that is not the testing package's own.
func reason(output string) string {
	said := ""
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			said = line
		}
	}
	return said
}
