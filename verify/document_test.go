// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// head begins a policy for ghcr.io/acme/*; what follows is more of spec.
const head = `apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: acme}
spec:
  images: ["ghcr.io/acme/*"]
`

func TestParsePoliciesReadsEveryField(t *testing.T) {
	p := policyOf(t, `
# a comment
---
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: acme, labels: {team: net}, annotations: {why: because}}
spec:
  images: ["ghcr.io/acme/**", "acme/x"]
  authorities:
  - key: {data: first}
  - key:
      data: |-
        second
  unsigned: true
  allow:
    hooks: [xdp, tc, tracepoint]
    interfaces: ["eth*"]
    priority: {min: 100, max: 900}
    writableMaps: ["config*"]
    maxMapBytes: 16Mi
    maxPrograms: 4
    maxInstructions: 5000
    helpers: {deny: [bpf_probe_write_user, send_signal, "kfunc:bpf_task_acquire", "helper#4711"]}
  subjects: ["team/agent", "net/*"]
---
`)
	limit := uint64(16 << 20)
	want := &Policy{
		Name:        "acme",
		Images:      []Glob{{"ghcr.io/acme/**", []string{"ghcr.io", "acme", "**"}}, {"acme/x", []string{"docker.io", "acme", "x"}}},
		Authorities: []Authority{fakeKey("first"), fakeKey("second")},
		Unsigned:    true,
		Allow: Allow{
			Hooks:        []volume.Kind{volume.KindXDP, volume.KindTC, volume.KindTracepoint},
			Interfaces:   []string{"eth*"},
			MinPriority:  100,
			MaxPriority:  900,
			WritableMaps: []string{"config*"},
			MaxMapBytes:  &limit,
			DenyHelpers:  []string{"bpf_probe_write_user", "bpf_send_signal", "bpf_task_acquire", "helper#4711"},

			MaxPrograms:     4,
			MaxInstructions: 5000,
		},
		Subjects: []string{"team/agent", "net/*"},
	}
	if diff := cmp.Diff(want, p, cmp.AllowUnexported(Glob{})); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
}

func TestEachFieldOfAllowReplacesItsDefaultAlone(t *testing.T) {
	def := defaultAllow()
	set := func(change func(*Allow)) Allow {
		a := def
		change(&a)
		return a
	}
	zero := uint64(0)
	for text, want := range map[string]Allow{
		"":                                      def,
		"  allow: {}":                           def,
		"  allow:":                              def,
		"  allow: {hooks: [kprobe]}":            set(func(a *Allow) { a.Hooks = []volume.Kind{volume.KindKprobe} }),
		"  allow: {hooks: []}":                  set(func(a *Allow) { a.Hooks = []volume.Kind{} }),
		"  allow: {interfaces: []}":             set(func(a *Allow) { a.Interfaces = []string{} }),
		"  allow: {priority: {min: 10}}":        set(func(a *Allow) { a.MinPriority = 10 }),
		"  allow: {priority: {max: 10}}":        set(func(a *Allow) { a.MaxPriority = 10 }),
		"  allow: {maxMapBytes: 0}":             set(func(a *Allow) { a.MaxMapBytes = &zero }),
		"  allow: {writableMaps: [a]}":          set(func(a *Allow) { a.WritableMaps = []string{"a"} }),
		"  allow: {maxMapBytes: null}":          def,
		"  allow: {maxPrograms: 1}":             set(func(a *Allow) { a.MaxPrograms = 1 }),
		"  allow: {maxInstructions: 1}":         set(func(a *Allow) { a.MaxInstructions = 1 }),
		"  allow: {helpers: {deny: [kfunc:a]}}": set(func(a *Allow) { a.DenyHelpers = []string{"a"} }),
	} {
		if diff := cmp.Diff(want, policyOf(t, head+text).Allow); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
}

func TestMapBytesAreKubernetesQuantities(t *testing.T) {
	for text, want := range map[string]uint64{"4096": 4096, `"4096"`: 4096, "64Mi": 64 << 20, "1G": 1e9, "1.5Ki": 1536} {
		got := policyOf(t, head+"  allow: {maxMapBytes: "+text+"}").Allow.MaxMapBytes
		if got == nil || *got != want {
			t.Errorf("%s: got %v, want %d", text, got, want)
		}
	}
}

func TestPoliciesThatAreRefused(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"unknown field", head + "  imagez: []", `unknown field "spec.imagez"`},
		{"two unknown fields are one line", head + "  imagez: []\n  subjectz: []", `unknown field "spec.imagez"; unknown field "spec.subjectz"`},
		{"unknown deep field", head + "  allow: {hook: [xdp]}", `unknown field "spec.allow.hook"`},
		{"unknown field of a list's entry", head + "  authorities: [{kee: {data: x}}]", `unknown field "spec.authorities[0].kee"`},
		{"case", head + "  Unsigned: true", `unknown field "spec.Unsigned"`},
		{"repeated field", head + "  unsigned: true\n  unsigned: false", "already defined"},
		{"no YAML", "a: b: c", "test.yaml: yaml: "},
		{"tab", "\ta: b", "test.yaml: yaml: "},
		{"a list", "[a, b]", "is not a map"},
		{"a word", "word", "is not a map"},
		{"a key that is no string", "1: 2", "keys must be strings"},
		{"other kind", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}", `is "ConfigMap" of "v1"; want kind BytecodePolicy of apiVersion bpfvol.io/v1alpha1`},
		{"no kind", "metadata: {name: x}", `is "" of ""`},
		{"other version", strings.Replace(head, "v1alpha1", "v2", 1), `of "bpfvol.io/v2"`},
		{"no name", strings.Replace(head, "name: acme", "", 1), "metadata.name must be"},
		{"bad name", strings.Replace(head, "name: acme", "name: Acme!", 1), "metadata.name must be"},
		{"no images", strings.Replace(head, `["ghcr.io/acme/*"]`, "[]", 1), "spec.images is empty"},
		{"images a word", strings.Replace(head, `["ghcr.io/acme/*"]`, "ghcr.io/acme/x", 1), "spec.images: is a string; want a list"},
		{"bad glob", strings.Replace(head, `ghcr.io/acme/*`, "ghcr.io/acme/x**", 1), "spec.images[0]: image glob"},
		{"null glob", strings.Replace(head, `"ghcr.io/acme/*"`, "null", 1), "spec.images[0]: image glob"},
		{"unsigned a word", head + "  unsigned: sure", "spec.unsigned: is a string; want a bool"},
		{"unsigned yes", head + "  unsigned: yes", "spec.unsigned: is a string; want a bool"},
		{"bad key", head + "  authorities: [{key: {data: bad}}]", `policy "acme" at line 6: spec.authorities[0]: key.data: is not PEM`},
		{"empty authority", head + "  authorities: [{}]", "spec.authorities[0]: has neither key nor keyless"},
		{"null authority", head + "  authorities: [null]", "spec.authorities[0]: has neither key nor keyless"},
		{"both", head + "  authorities: [{key: {data: a}, keyless: {issuer: b}}]", "give each its own entry"},
		{"keyless", head + "  authorities: [{keyless: {issuer: a, subjectRegexp: b}, trustedRoot: {file: c}}]", "keyless: not supported"},
		{"key with a root", head + "  authorities: [{key: {data: a}, trustedRoot: {file: c}}]", "a key needs none"},
		{"unknown hook", head + "  allow: {hooks: [xpd]}", `spec.allow.hooks[0]: unknown hook "xpd"; known: xdp, tc,`},
		{"priority beyond", head + "  allow: {priority: {max: 1001}}", "spec.allow.priority: 0 to 1001 is no band"},
		{"priority turned round", head + "  allow: {priority: {min: 900, max: 100}}", "spec.allow.priority: 900 to 100 is no band"},
		{"priority no map", head + "  allow: {priority: 5}", "spec.allow.priority: is a number; want a map"},
		{"priority a fraction", head + "  allow: {priority: {min: 1.5}}", "spec.allow.priority.min: is a number 1.5; want a whole number"},
		{"map bytes", head + "  allow: {maxMapBytes: lots}", `spec.allow.maxMapBytes: "lots" is no number of bytes`},
		{"map bytes negative", head + "  allow: {maxMapBytes: -1}", "is no number of bytes"},
		{"map bytes of any length", head + "  allow: {maxMapBytes: 1e999999999}", "is no number of bytes"},
		{"helper", head + "  allow: {helpers: {deny: [probe-write]}}", `spec.allow.helpers.deny[0]: "probe-write" is no helper's name`},
		{"helper mistyped", head + "  allow: {helpers: {deny: [bpf_redirect, bpf_probe_write_usr]}}", `spec.allow.helpers.deny[1]: unknown helper "bpf_probe_write_usr"; did you mean "bpf_probe_write_user"? a kernel function that is no helper is written "kfunc:bpf_probe_write_usr"`},
		{"kfunc not called one", head + "  allow: {helpers: {deny: [cgroup_rstat_updated_all]}}", `is written "kfunc:cgroup_rstat_updated_all"`},
		{"kfunc", head + "  allow: {helpers: {deny: ['kfunc:']}}", `"kfunc:" is no kernel function's name`},
		{"helper's number", head + "  allow: {helpers: {deny: ['helper#09']}}", `"helper#09" is no helper's number`},
		{"helper's number beyond", head + "  allow: {helpers: {deny: ['helper#4294967297']}}", "is no helper's number"},
		{"helper by number that has a name", head + "  allow: {helpers: {deny: ['helper#109']}}", `"helper#109" has a name; write "bpf_send_signal"`},
		{"no programs", head + "  allow: {maxPrograms: 0}", "spec.allow.maxPrograms: 0 lets nothing run; write 1 or more, or leave it out for no limit"},
		{"no instructions", head + "  allow: {maxInstructions: -1}", "spec.allow.maxInstructions: -1 lets nothing run"},
		{"subject", head + "  subjects: [default]", `spec.subjects[0]: subject "default": write "namespace/serviceaccount"`},
		{"any namespace's account", head + "  subjects: ['*/agent']", "spec.subjects[0]"},
		{"prefix of an account", head + "  subjects: ['net/agent-*']", "spec.subjects[0]"},
		{"twice", head + "---\n" + head, `policy "acme" is defined twice`},
		{"second document", head + "---\nkind: x", `document at line 7: is "x"`},
		{"too large", strings.Repeat("#", maxFile+1), "the limit is"},
		{"laughter", "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n", "excessive aliasing"},
	} {
		_, err := ParsePolicies([]byte(tc.text), "test.yaml", fakeCompile)
		switch {
		case err == nil:
			t.Errorf("%s: was accepted", tc.name)
		case !strings.Contains(err.Error(), tc.want):
			t.Errorf("%s: got %q\nwant %q in it", tc.name, err, tc.want)
		case !strings.HasPrefix(err.Error(), "policy file test.yaml: "):
			t.Errorf("%s: %q does not name the file", tc.name, err)
		}
	}
}

func TestMistakesAreFoundByTheirLine(t *testing.T) {
	for _, tc := range []struct{ more, want string }{
		{"  images: []\n", "mapping key"}, // twice: YAML itself says where
		{"  allow:\n    hooks:\n    - xdp\n    - xpd\n", `policy "acme" at line 9: spec.allow.hooks[1]: `},
		{"  authorities:\n  - key: {data: a}\n  - key: {data: bad}\n", `policy "acme" at line 8: spec.authorities[1]: `},
		{"  subjects:\n  # a comment\n  - net\n", `policy "acme" at line 8: spec.subjects[0]: `},
		{"  allow:\n    priority:\n      min: many\n", `at line 8: spec.allow.priority.min: `},
		{"  colour: red\n", `at line 6: unknown field "spec.colour"`},
		{"---\n# a comment\n\nkind: x\n", `document at line 9: is "x"`},
	} {
		_, err := ParsePolicies([]byte(head+tc.more), "test.yaml", fakeCompile)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v\nwant %q in it", tc.more, err, tc.want)
		}
	}
}

func TestFilesWithoutPoliciesAreFine(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "---\n---\n# nothing\n---\n", "null"} {
		ps, err := ParsePolicies([]byte(text), "test.yaml", fakeCompile)
		if err != nil || len(ps) != 0 {
			t.Errorf("%q: got %d policies, %v", text, len(ps), err)
		}
	}
}

func TestCompilerGetsTheFilesDirectory(t *testing.T) {
	var got string
	_, err := ParsePolicies([]byte(head+"  authorities: [{key: {data: x}}]"), "/etc/bpfvol/policy.d/a.yaml", func(_ v1alpha1.Authority, dir string) (Authority, error) {
		got = dir
		return fakeKey("x"), nil
	})
	if err != nil || got != "/etc/bpfvol/policy.d" {
		t.Errorf("got %q, %v", got, err)
	}
}

// Whatever is accepted denies what it does not say: nobody but its subjects, no image without a signature, no hook that it
// does not list, no writable map, no memory without a bound.
func FuzzParsePolicies(f *testing.F) {
	f.Add([]byte(head + "  authorities: [{key: {data: a}}]\n  allow: {hooks: [xdp], priority: {min: 1}, maxMapBytes: 64Mi}\n  subjects: ['*']\n"))
	f.Add([]byte(head + "  unsigned: true\n  allow: {helpers: {deny: [bpf_redirect, 'kfunc:a', 'helper#4711']}, maxPrograms: 1, writableMaps: ['*']}\n"))
	f.Add([]byte(head + "---\n" + head))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ps, err := ParsePolicies(data, "fuzz.yaml", fakeCompile)
		if err != nil && ps != nil {
			t.Error("policies beside an error")
		}
		for _, p := range ps {
			if p.Name == "" || len(p.Images) == 0 {
				t.Errorf("got %+v", p)
			}
			wantDeniesByDefault(t, p)
		}
	})
}

func wantDeniesByDefault(t *testing.T, p *Policy) {
	t.Helper()
	stranger := Subject{Namespace: "some", ServiceAccount: "stranger"}
	named := slices.Contains(p.Subjects, "*") || slices.Contains(p.Subjects, "some/*") || slices.Contains(p.Subjects, stranger.String())
	if got, err := (Static{p}).For(t.Context(), stranger, acmeX); (err == nil) != (named && p.covers(acmeX)) || (err == nil) != (len(got) == 1) {
		t.Errorf("for a stranger: got %d policies, %v; subjects %q", len(got), err, p.Subjects)
	}
	for _, s := range []Subject{{}, {Namespace: "some"}, {ServiceAccount: "some"}} {
		if _, err := (Static{p}).For(t.Context(), s, acmeX); err == nil {
			t.Errorf("nobody is let in by subjects %q", p.Subjects)
		}
	}
	if _, err := check(t.Context(), &fakeRoot{}, acmeX, d1, []*Policy{p}); (err == nil) != (p.Unsigned && p.covers(acmeX)) {
		t.Errorf("without a signature: %v; unsigned: %v", err, p.Unsigned)
	}
	for _, kind := range []volume.Hook{&volume.Kprobe{Function: "f"}, &volume.Tracepoint{Group: "a", Name: "b"}, &volume.LSM{Name: "x"}} {
		if denied := len(p.Allow.objections(Facts{Attach: attach(kind)})) > 0; denied == slices.Contains(p.Allow.Hooks, kind.Kind()) {
			t.Errorf("hook %s: denied %v; hooks %q", kind.Kind(), denied, p.Allow.Hooks)
		}
	}
	if len(p.Allow.WritableMaps) == 0 && len(p.Allow.objections(Facts{Maps: []MapFacts{{Name: "m", Access: volume.ReadWrite}}})) == 0 {
		t.Error("a map may be written that nobody names")
	}
	if len(p.Allow.objections(Facts{Maps: []MapFacts{{Bytes: math.MaxUint64}}})) == 0 {
		t.Error("maps may take all memory")
	}
	if p.Allow.MinPriority < 0 || p.Allow.MaxPriority > maxPriority || p.Allow.MinPriority > p.Allow.MaxPriority {
		t.Errorf("priority %d to %d", p.Allow.MinPriority, p.Allow.MaxPriority)
	}
	for _, h := range p.Allow.DenyHelpers {
		if len(p.Allow.objections(Facts{Programs: []ProgramFacts{{Helpers: []string{h}}}})) == 0 {
			t.Errorf("helper %q is denied and is not", h)
		}
	}
}

func FuzzParseGlob(f *testing.F) {
	f.Add("ghcr.io/acme/**", "ghcr.io/acme/x")
	f.Add("**/a/*b*", "docker.io/x")
	f.Fuzz(func(t *testing.T, glob, name string) {
		g, err := ParseGlob(glob)
		if err != nil {
			return
		}
		if again, err := ParseGlob(g.String()); err != nil || again.Match(reference(name)) != g.Match(reference(name)) {
			t.Errorf("%q does not read as it prints", glob)
		}
		if !strings.Contains(glob, "*") && strings.Contains(name, "*") && g.Match(reference(name)) {
			t.Errorf("%q matches %q", glob, name)
		}
	})
}

// FuzzGlob compares with a matcher that is too simple to be wrong and too slow to be used.
func FuzzGlob(f *testing.F) {
	for _, seed := range [][2]string{
		{"ghcr.io/acme/**", "ghcr.io/acme/x"}, {"**/a/*b*", "docker.io/x"}, {"ghcr.io/**/a/**/b", "ghcr.io/a/a/b/b"}, {"*/a*a*/**", "h.io/aa/x/y"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, glob, name string) {
		g, err := ParseGlob(glob)
		elements := strings.Split(repository(reference(name)), "/")
		if err != nil || len(g.elements) > 6 || len(elements) > 8 || strings.Count(glob, "*") > 8 || len(name) > 100 {
			return // it would take the simple one too long
		}
		if got, want := g.Match(reference(name)), simpleMatch(g.elements, elements); got != want {
			t.Errorf("%q for %q: got %v, want %v", glob, name, got, want)
		}
	})
}

func simpleMatch(pattern, name []string) bool {
	switch {
	case len(pattern) == 0:
		return len(name) == 0
	case pattern[0] == "**" && len(pattern) == 1:
		return len(name) > 0
	case pattern[0] == "**":
		for i := range len(name) + 1 {
			if simpleMatch(pattern[1:], name[i:]) {
				return true
			}
		}
		return false
	}
	return len(name) > 0 && simpleElement(pattern[0], name[0]) && simpleMatch(pattern[1:], name[1:])
}

func simpleElement(pattern, s string) bool {
	if pattern == "" {
		return s == ""
	}
	if pattern[0] != '*' {
		return s != "" && s[0] == pattern[0] && simpleElement(pattern[1:], s[1:])
	}
	for i := range len(s) + 1 {
		if simpleElement(pattern[1:], s[i:]) {
			return true
		}
	}
	return false
}
