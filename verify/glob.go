// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"fmt"
	"strings"

	"github.com/bpfvol/bpfvol/internal/image"
)

// Glob matches image repositories: "*" is any characters inside one path element, an element "**" is any elements,
// everything else is literal. The host with its port is the first element.
//
// A pattern is read like a reference: "nginx" is docker.io/library/nginx and "acme/*" is docker.io/acme/*. Its first
// element is a host where it has a dot or a colon, or is "localhost", "*" or "**".
type Glob struct {
	text     string   // as written
	elements []string // normalised
}

// maxGlob is the length of the longest name that registries take.
const maxGlob = 255

// ParseGlob reads one pattern.
func ParseGlob(s string) (Glob, error) {
	if len(s) > maxGlob {
		return Glob{}, fmt.Errorf("image glob %.40q...: %d bytes; no name is longer than %d", s, len(s), maxGlob)
	}
	elements := strings.Split(s, "/")
	for _, e := range elements {
		switch {
		case e == "":
			return Glob{}, fmt.Errorf("image glob %q: an element is empty; write host/path without a leading, trailing or double slash", s)
		case e != "**" && strings.Contains(e, "**"):
			return Glob{}, fmt.Errorf("image glob %q: \"**\" must be a whole element between slashes", s)
		case strings.Contains(e, "@"):
			return Glob{}, fmt.Errorf("image glob %q: policies match repositories; leave the digest out", s)
		case strings.ContainsAny(e, " \t\n"):
			return Glob{}, fmt.Errorf("image glob %q: has white space", s)
		}
	}
	if len(elements) == 1 && (s == "localhost" || strings.ContainsAny(s, ".:")) {
		return Glob{}, fmt.Errorf("image glob %q: names a host and no repository; for all of a host write %q", s, s+"/**")
	}
	if len(elements) > 1 && strings.Contains(elements[len(elements)-1], ":") {
		return Glob{}, fmt.Errorf("image glob %q: policies match repositories; leave the tag out", s)
	}
	return Glob{text: s, elements: normalise(elements)}, nil
}

// String returns the pattern as it was written.
func (g Glob) String() string { return g.text }

// Match reports whether the pattern covers the repository of ref.
func (g Glob) Match(ref image.Reference) bool {
	return matchElements(g.elements, strings.Split(repository(ref), "/"))
}

// repository is the name that policies match, "ghcr.io/acme/x", spelled one way whoever made the reference.
func repository(ref image.Reference) string {
	elements := append([]string{ref.Registry}, strings.Split(ref.Repository, "/")...)
	return strings.Join(normalise(elements), "/")
}

// normalise gives every Docker Hub form its full name and lowers the host.
func normalise(elements []string) []string {
	first := strings.ToLower(elements[0])
	if first == "**" {
		return elements
	}
	if first != "*" && first != "localhost" && !strings.ContainsAny(first, ".:") {
		elements = append([]string{"docker.io"}, elements...)
		first = "docker.io"
	}
	switch first {
	case "index.docker.io", "registry-1.docker.io":
		first = "docker.io"
	}
	rest := elements[1:]
	if first == "docker.io" && len(rest) == 1 && rest[0] != "**" {
		rest = []string{"library", rest[0]}
	}
	return append([]string{first}, rest...)
}

// matchElements reports whether pattern covers name. "**" stands for any elements, at the end of a pattern for at
// least one: "x/**" does not cover x itself.
func matchElements(pattern, name []string) bool {
	if n := len(pattern); n > 0 && pattern[n-1] == "**" {
		pattern = append(append([]string(nil), pattern[:n-1]...), "*", "**")
	}
	p, n := 0, 0
	retryP, retryN := -1, 0 // where to go on when what follows the last "**" does not fit
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == "**":
			retryP, retryN = p, n
			p++
		case p < len(pattern) && matchElement(pattern[p], name[n]):
			p++
			n++
		case retryP >= 0:
			retryN++
			p, n = retryP+1, retryN
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}

// matchElement matches "*" within one element. Interfaces and maps match by it, too.
func matchElement(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	first, last := parts[0], parts[len(parts)-1]
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return true
}

// near counts the leading elements that pattern and ref share, to name the policy that came closest.
func (g Glob) near(ref image.Reference) int {
	name := strings.Split(repository(ref), "/")
	n := 0
	for n < len(name) && n < len(g.elements) && g.elements[n] != "**" && matchElement(g.elements[n], name[n]) {
		n++
	}
	return n
}
