// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/internal/image"
)

// reference splits host and repository; package image parses for real.
func reference(s string) image.Reference {
	host, repo, _ := strings.Cut(s, "/")
	return image.Reference{Registry: host, Repository: repo}
}

func TestGlobMatchesRepositories(t *testing.T) {
	for _, tc := range []struct {
		glob    string
		match   []string
		nomatch []string
	}{
		{"ghcr.io/acme/*", []string{"ghcr.io/acme/x", "GHCR.IO/acme/x"}, []string{
			"ghcr.io/acme", "ghcr.io/acme/x/y", "ghcr.io/acmeevil/x", "ghcr.io/evil/acme/x", "ghcr.io.evil.com/acme/x", "ghcr.io:443/acme/x", "docker.io/acme/x",
		}},
		{"ghcr.io/acme/**", []string{"ghcr.io/acme/x", "ghcr.io/acme/x/y/z"}, []string{"ghcr.io/acme", "ghcr.io/acmeevil/x"}},
		{"ghcr.io/acme*/x", []string{"ghcr.io/acme/x", "ghcr.io/acmeevil/x"}, []string{"ghcr.io/acme/y/x"}},
		{"ghcr.io/**/x", []string{"ghcr.io/x", "ghcr.io/a/x", "ghcr.io/a/b/x"}, []string{"ghcr.io/a/xx", "ghcr.io/a/x/y"}},
		{"ghcr.io/a/**/b/**/c", []string{"ghcr.io/a/b/c", "ghcr.io/a/x/b/y/b/z/c"}, []string{"ghcr.io/a/c", "ghcr.io/a/b/c/d"}},
		{"ghcr.io/acme/x", []string{"ghcr.io/acme/x"}, []string{"ghcr.io/acme/xy", "ghcr.io/acme/x/y"}},
		{"ghcr.io/acme/bpf-*-v1", []string{"ghcr.io/acme/bpf-x-v1", "ghcr.io/acme/bpf--v1"}, []string{"ghcr.io/acme/bpf-v1"}},
		{"ghcr.io/a*b*c", []string{"ghcr.io/abc", "ghcr.io/axbxbxc"}, []string{"ghcr.io/acb", "ghcr.io/ab"}},
		{"GHCR.io/acme/x", []string{"ghcr.io/acme/x"}, nil},
		{"127.0.0.1:5000/**", []string{"127.0.0.1:5000/x"}, []string{"127.0.0.1:5001/x", "127.0.0.1/x"}},
		{"[::1]:5000/x", []string{"[::1]:5000/x"}, nil},
		{"localhost/x", []string{"localhost/x"}, []string{"docker.io/localhost/x"}},
		{"*.example.com/x", []string{"a.example.com/x"}, []string{"example.com/x", "a.example.com.evil.org/x"}},
		{"*/acme/x", []string{"ghcr.io/acme/x", "docker.io/acme/x"}, []string{"ghcr.io/b/acme/x"}},
		{"**", []string{"ghcr.io/acme/x", "docker.io/library/x"}, nil},
		{"**/x", []string{"ghcr.io/acme/x", "docker.io/library/x"}, []string{"ghcr.io/acme/y"}},
		// Docker Hub
		{"nginx", []string{"docker.io/library/nginx", "index.docker.io/library/nginx", "docker.io/nginx"}, []string{"docker.io/acme/nginx"}},
		{"acme/*", []string{"docker.io/acme/x"}, []string{"ghcr.io/acme/x", "acme.evil.com/x"}},
		{"acme*/x", []string{"docker.io/acme/x", "docker.io/acmeevil/x"}, []string{"acme.evil.com/x"}},
		{"index.docker.io/acme/x", []string{"docker.io/acme/x"}, nil},
		{"docker.io/*", []string{"docker.io/library/nginx"}, []string{"docker.io/acme/x"}},
		{"docker.io/**", []string{"docker.io/library/nginx", "docker.io/acme/x"}, []string{"ghcr.io/acme/x"}},
		// everything else is literal
		{"ghcr.io/acme/?", nil, []string{"ghcr.io/acme/x"}},
		{"ghcr.io/acme/[x]", nil, []string{"ghcr.io/acme/x"}},
		{"ghcr.io/acme/x.", nil, []string{"ghcr.io/acme/xy"}},
	} {
		g, err := ParseGlob(tc.glob)
		if err != nil {
			t.Errorf("%q: %v", tc.glob, err)
			continue
		}
		if g.String() != tc.glob {
			t.Errorf("%q prints as %q", tc.glob, g)
		}
		for _, s := range tc.match {
			if !g.Match(reference(s)) {
				t.Errorf("%q does not match %q", tc.glob, s)
			}
		}
		for _, s := range tc.nomatch {
			if g.Match(reference(s)) {
				t.Errorf("%q matches %q", tc.glob, s)
			}
		}
	}
}

// As a pod writes it, by way of the parser that the puller uses: a glob never covers what is pulled from elsewhere.
func TestGlobMatchesWhatIsPulled(t *testing.T) {
	const sum = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, tc := range []struct {
		glob, ref string
		want      bool
	}{
		{"ghcr.io/acme/*", "ghcr.io/acme/x", true},
		{"ghcr.io/acme/*", "ghcr.io/acme/x:v1", true},
		{"ghcr.io/acme/*", "ghcr.io/acme/x:v1" + sum, true},
		{"ghcr.io/acme/*", "ghcr.io/acme/x" + sum, true},
		{"ghcr.io/acme/*", "ghcr.io/acme/x/y:v1", false},
		{"ghcr.io/acme/*", "ghcr.io/acmeevil/x", false},
		{"ghcr.io/acme/*", "GHCR.io/acme/x", true},
		{"GHCR.IO/acme/*", "ghcr.io/acme/x", true},
		{"ghcr.io/acme/*", "ghcr.io:443/acme/x", false},
		{"ghcr.io:443/acme/*", "ghcr.io:443/acme/x", true},
		{"ghcr.io/acme/*", "ghcr.io:5000/acme/x", false},
		{"ghcr.io/acme/*", "ghcr.io.evil.com/acme/x", false},
		{"ghcr.io/acme/*", "evil.com/ghcr.io/acme/x", false},
		{"acme/*", "acme/x", true},
		{"acme/*", "docker.io/acme/x", true},
		{"acme/*", "index.docker.io/acme/x", true},
		{"acme/*", "registry-1.docker.io/acme/x", true},
		{"acme/*", "acme.io/x", false},
		{"acme/*", "ghcr.io/acme/x", false},
		{"nginx", "nginx:1.27", true},
		{"nginx", "docker.io/library/nginx", true},
		{"nginx", "evil/nginx", false},
		{"library/*", "nginx", true},
		{"docker.io/*", "nginx", true},
		{"docker.io/*", "acme/x", false},
		{"localhost/*", "localhost/x", true},
		{"localhost:5000/**", "localhost:5000/a/x", true},
		{"localhost:5000/**", "localhost/a/x", false},
	} {
		g, err := ParseGlob(tc.glob)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := image.ParseReference(tc.ref)
		if err != nil {
			t.Errorf("%s: %v", tc.ref, err)
			continue
		}
		if got := g.Match(ref); got != tc.want {
			t.Errorf("%q for %q, which is pulled from %s: got %v", tc.glob, tc.ref, ref.Name(), got)
		}
	}
	// What would be the same name in another spelling is no reference at all.
	for _, ref := range []string{"ghcr.io/ACME/x", "ghcr.io/acme/../evil/x", "ghcr.io//acme/x", "ghcr.io/acme/x/", "ghcr.io/acme%2fx", "https://ghcr.io/acme/x", "user@ghcr.io/acme/x"} {
		if parsed, err := image.ParseReference(ref); err == nil {
			t.Errorf("%q is read as %s", ref, parsed.Name())
		}
	}
}

func TestGlobsThatAreRefused(t *testing.T) {
	for glob, want := range map[string]string{
		"":                       "an element is empty",
		"/x":                     "an element is empty",
		"ghcr.io//x":             "an element is empty",
		"ghcr.io/x/":             "an element is empty",
		"ghcr.io/x**":            "must be a whole element",
		"ghcr.io/x/***":          "must be a whole element",
		"ghcr.io/x:v1":           "leave the tag out",
		"ghcr.io/x@sha256:abcd":  "leave the digest out",
		"ghcr.io/a b":            "has white space",
		"ghcr.io":                `write "ghcr.io/**"`,
		"localhost:5000":         `write "localhost:5000/**"`,
		strings.Repeat("a", 256): "no name is longer than 255",
	} {
		if _, err := ParseGlob(glob); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", glob, err, want)
		}
	}
}

func TestGlobTakesNoExponentialTime(t *testing.T) {
	g, err := ParseGlob("ghcr.io/" + strings.Repeat("**/a/", 48) + "b")
	if err != nil {
		t.Fatal(err)
	}
	if g.Match(reference("ghcr.io/" + strings.Repeat("a/", 120) + "c")) {
		t.Error("matches")
	}
}
