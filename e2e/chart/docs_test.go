// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
)

// Whoever troubleshoots finds what docs/operations.md quotes of events, and where its links lead.
func TestOperationsQuotesEventsThatExist(t *testing.T) {
	text := read(t, "operations.md")
	events := read(t, "events.md")
	_, table, found := strings.Cut(text, "| the event says | first look |\n")
	if !found {
		t.Fatal("no table of events")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1)
	if len(rows) < 5 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows {
		if !strings.Contains(events, row[1]) {
			t.Errorf("events.md has no %q", row[1])
		}
	}
	for _, link := range regexp.MustCompile(`\]\(([^)#]*)#?([^)]*)\)`).FindAllStringSubmatch(text, -1) {
		file, anchor := filepath.Join(gobuild.Root(), "docs", link[1]), link[2]
		if link[1] == "" {
			file = filepath.Join(gobuild.Root(), "docs", "operations.md")
		}
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
			continue
		}
		if anchor == "" {
			continue
		}
		target, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !hasAnchor(string(target), anchor) {
			t.Errorf("%s has no heading for #%s", link[1], anchor)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(gobuild.Root(), "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// hasAnchor says whether a heading gets this anchor, as GitHub makes it: lower case, without punctuation, with hyphens.
func hasAnchor(text, anchor string) bool {
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		kept := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		if strings.ReplaceAll(kept, " ", "-") == anchor {
			return true
		}
	}
	return false
}
