// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"regexp"
	"testing"
	"unicode/utf8"

	"github.com/bpfvol/bpfvol/internal/image"
)

func TestGlobsAndTheirRegexpsAgree(t *testing.T) {
	names := []string{
		"ghcr.io/acme/x", "ghcr.io/acme/x/y", "ghcr.io/acme/x/y/z", "ghcr.io/acme", "ghcr.io/acmeevil/x", "ghcr.io.evil.com/acme/x", "ghcr.io/x", "ghcr.io/a/b/x",
		"ghcr.io/a/b/c", "ghcr.io/a/x/b/y/b/z/c", "ghcr.io/a/c", "docker.io/library/nginx", "docker.io/acme/x", "docker.io/acme/nginx", "127.0.0.1:5000/x",
		"127.0.0.1:5000/a/b", "[::1]:5000/x", "localhost/x", "a.example.com/x", "example.com/x", "ghcr.io/abc", "ghcr.io/axbxbxc", "ghcr.io/acb",
	}
	globs := []string{
		"**", "**/x", "*/x", "*/acme/x", "*/**", "**/**", "**/a/**", "ghcr.io/**", "ghcr.io/*", "ghcr.io/acme/*", "ghcr.io/acme/**", "ghcr.io/acme*/x", "ghcr.io/**/x",
		"ghcr.io/**/**/x", "ghcr.io/a/**/b/**/c", "ghcr.io/a*b*c", "GHCR.io/acme/x", "*.example.com/x", "nginx", "acme/*", "docker.io/*", "docker.io/**",
		"index.docker.io/acme/x", "127.0.0.1:5000/**", "[::1]:5000/x", "localhost/x", "ghcr.io/acme/[x]", "ghcr.io/acme/x.", "ghcr.io/acme/(x|y)",
	}
	matches := 0
	for _, text := range globs {
		g, err := ParseGlob(text)
		if err != nil {
			t.Fatal(err)
		}
		re, err := regexp.Compile(g.Regexp())
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		for _, name := range names {
			want := g.Match(reference(name))
			if got := re.MatchString(name); got != want {
				t.Errorf("%q is %s: matches %q: %t; the glob: %t", text, re, name, got, want)
			}
			if want {
				matches++
			}
		}
	}
	if matches < 50 {
		t.Errorf("only %d matches: the table shows little", matches)
	}
}

func FuzzGlobRegexp(f *testing.F) {
	f.Add("ghcr.io/acme/**", "ghcr.io/acme/x")
	f.Add("**/a/*b*", "docker.io/x")
	f.Add("a.b/(?i:x)", "a.b/x")
	f.Fuzz(func(t *testing.T, glob, name string) {
		g, err := ParseGlob(glob)
		if err != nil || !utf8.ValidString(glob) { // no YAML says that
			return
		}
		ref, err := image.ParseReference(name)
		if err != nil {
			return
		}
		re, err := regexp.Compile(g.Regexp())
		if err != nil {
			t.Fatalf("%q: %v", glob, err)
		}
		if got, want := re.MatchString(ref.Name()), g.Match(ref); got != want {
			t.Errorf("%q is %s: matches %q: %t; the glob: %t", glob, re, ref.Name(), got, want)
		}
	})
}
