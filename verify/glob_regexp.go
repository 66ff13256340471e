// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"regexp"
	"strings"
)

// Regexp returns an RE2 expression that matches the whole of image.Reference.Name exactly where Match does, for those
// who must ask in another language (TestGlobsAndTheirRegexpsAgree).
func (g Glob) Regexp() string {
	var b strings.Builder
	b.WriteString("^")
	last := len(g.elements) - 1
	for i, e := range g.elements {
		switch {
		case e == "**" && i == last:
			b.WriteString(".+") // one element or more: none is empty
		case e == "**":
			b.WriteString("(?:[^/]+/)*")
		default:
			literals := strings.Split(e, "*")
			for j := range literals {
				literals[j] = regexp.QuoteMeta(literals[j])
			}
			b.WriteString(strings.Join(literals, "[^/]*"))
			if i < last {
				b.WriteString("/")
			}
		}
	}
	b.WriteString("$")
	return b.String()
}
