// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/e2e/crash/inject"
)

// listFile holds every effect of every scenario, in the order in which they came when it was made. It is there for a reader:
// a change that brings a new effect shows it, and somebody looks.
const listFile = "testdata/effects.txt"

var update = flag.Bool("update", false, "write "+listFile)

// compareWithList wants the effects of a scenario to be those that the list has, in any order: some come from several threads.
func compareWithList(t *testing.T, scenario string, effects []inject.Fault) {
	t.Helper()
	var got []string
	for _, e := range effects {
		got = append(got, e.Effect)
	}
	if *update {
		writeList(t, scenario, got)
		return
	}
	want := readList(t)[scenario]
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("effects of %s (-listed +now):\n%s\nEach is visited by this test, now that you know of it. Is what a fault there leaves taken away "+
			"by teardown, and by recovery? Then write the list again: go test ./e2e/crash -run TestFaultAtEveryEffect -update", scenario, diff)
	}
}

// readList reads the effects by scenario.
func readList(t *testing.T) map[string][]string {
	t.Helper()
	file, err := os.Open(listFile)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	list, scenario := map[string][]string{}, ""
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "# "); ok {
			scenario = name
		} else if lines.Text() != "" {
			list[scenario] = append(list[scenario], lines.Text())
		}
	}
	return list
}

func writeList(t *testing.T, scenario string, effects []string) {
	t.Helper()
	list := map[string][]string{}
	if _, err := os.Stat(listFile); err == nil {
		list = readList(t)
	}
	list[scenario] = effects
	var text strings.Builder
	for _, s := range scenarios {
		if effects := list[s.name]; len(effects) > 0 {
			fmt.Fprintf(&text, "# %s\n\n%s\n\n", s.name, strings.Join(effects, "\n"))
		}
	}
	if err := os.WriteFile(listFile, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
