// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"strings"
	"testing"
)

func TestSuggestFindsTheNearestWord(t *testing.T) {
	known := []string{"image", "attach", "maps", "variables", "mapEntries", "pullPolicy", "xdp", "tx"}
	for _, c := range []struct{ word, want string }{
		{"image", "image"},
		{"imge", "image"},
		{"imaeg", "image"},
		{"attahc", "attach"},
		{"map_entries", "mapEntries"},
		{"MAPENTRIES", "mapEntries"},
		{"pull-policy", "pullPolicy"},
		{"variable", "variables"},
		{"var", "variables"},
		{"xpd", "xdp"},
		{"map", "maps"},
		{"x", ""},
		{"", ""},
		{"_", ""},
		{"interface", ""},
		{"ünïcödé", ""},
		{strings.Repeat("image", 100), ""},
	} {
		if got := Suggest(c.word, known); got != c.want {
			t.Errorf("%q: got %q, want %q", c.word, got, c.want)
		}
	}
}

func TestDistanceCountsEdits(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "abd", 1}, {"abc", "acb", 1},
		{"abc", "ab", 1}, {"abc", "xabc", 1}, {"kitten", "sitting", 3}, {"ca", "abc", 3},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: got %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
