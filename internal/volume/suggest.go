// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"strings"
)

// Suggest returns the known word that a writer of word most likely meant, or "" if none is near: few letters differ, or
// word is its beginning. Case, "_" and "-" make no difference; among equally near words the first wins.
func Suggest(word string, known []string) string {
	const longest = 64
	if word == "" || len(word) > longest {
		return ""
	}
	word = plain(word)
	best, nearest := "", min((len(word)+2)/3+1, max(len(word), 1))
	for _, k := range known {
		if len(k) > longest {
			continue
		}
		if d := distance(word, plain(k)); d < nearest {
			best, nearest = k, d
		}
	}
	if best != "" || len(word) < 3 {
		return best
	}
	for _, k := range known {
		if strings.HasPrefix(plain(k), word) {
			return k
		}
	}
	return ""
}

var spelling = strings.NewReplacer("_", "", "-", "")

func plain(s string) string { return spelling.Replace(strings.ToLower(s)) }

// distance is how many insertions, deletions, replacements and swaps of neighbours make b of a (optimal string
// alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(replace, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// unknown says that word is none of the known, and which it could be.
func unknown(what, word string, known []string) error {
	if s := Suggest(word, known); s != "" {
		return fmt.Errorf("unknown %s %s; did you mean %q?", what, quote(word), s)
	}
	return fmt.Errorf("unknown %s %s; known are %s", what, quote(word), strings.Join(known, ", "))
}
