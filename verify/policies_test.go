// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// only is a policy for one glob and some subjects.
func only(t testing.TB, name, glob string, subjects ...string) *Policy {
	t.Helper()
	g, err := ParseGlob(glob)
	if err != nil {
		t.Fatal(err)
	}
	return &Policy{Name: name, Images: []Glob{g}, Subjects: subjects, Allow: defaultAllow()}
}

func TestSubjects(t *testing.T) {
	agent := Subject{Namespace: "net", ServiceAccount: "agent"}
	for _, tc := range []struct {
		patterns []string
		s        Subject
		want     bool
	}{
		{nil, agent, false}, // absent: nobody
		{[]string{"net/agent"}, agent, true},
		{[]string{"net/*"}, agent, true},
		{[]string{"*"}, agent, true},
		{[]string{"other/*", "net/agent"}, agent, true},
		{[]string{"net/agen"}, agent, false},
		{[]string{"network/*"}, agent, false},
		{[]string{"ne/*"}, agent, false},
		{[]string{"*"}, Subject{}, false},
		{[]string{"net/*"}, Subject{Namespace: "net", ServiceAccount: ""}, false},
		{[]string{"*"}, Subject{Namespace: "", ServiceAccount: "agent"}, false},
		// local/ is the command line's, and no pod's.
		{[]string{"local/root"}, LocalSubject("root"), true},
		{[]string{"local/*"}, LocalSubject("root"), true},
		{[]string{"*"}, LocalSubject("root"), true},
		{[]string{"local/root"}, LocalSubject("other"), false},
		{[]string{"net/*"}, LocalSubject("root"), false},
		{[]string{"local/root"}, Subject{Namespace: "local", ServiceAccount: "root"}, false},
		{[]string{"local/*"}, Subject{Namespace: "local", ServiceAccount: "root"}, false},
		{[]string{"*"}, Subject{Namespace: "local", ServiceAccount: "root"}, true},
		{[]string{"net/root", "net/*"}, Subject{Namespace: "net", ServiceAccount: "root", Local: true}, false},
	} {
		if got := matchSubject(tc.patterns, tc.s); got != tc.want {
			t.Errorf("%q for %q: got %t", tc.patterns, tc.s, got)
		}
	}
}

func TestNothingRunsWithoutPolicy(t *testing.T) {
	for _, none := range []Policies{Static(nil), Union{}, Union{Static{}, Static(nil)}} {
		_, err := none.For(t.Context(), Subject{Namespace: "net", ServiceAccount: "agent"}, acmeX)
		wantDenied(t, err, "image ghcr.io/acme/x:v1: no policy is in force; ", `images include "ghcr.io/acme/x"`)
	}
}

func TestForPicksByImageAndSubject(t *testing.T) {
	ps := Static{
		only(t, "elsewhere", "quay.io/**", "*"),
		only(t, "others", "ghcr.io/acme/*", "web/*"),
		only(t, "mine", "ghcr.io/acme/*", "net/*"),
		only(t, "everyone", "ghcr.io/**", "*"),
		only(t, "nobody", "ghcr.io/**"),
	}
	got, err := ps.For(t.Context(), Subject{Namespace: "net", ServiceAccount: "agent"}, acmeX)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Name != "mine" || got[1].Name != "everyone" {
		t.Errorf("got %q", names(got))
	}
}

func TestForSaysWhatCameClosest(t *testing.T) {
	ps := Static{
		only(t, "elsewhere", "quay.io/**", "*"),
		only(t, "acme", "ghcr.io/acme/*", "web/*"),
	}
	agent := Subject{Namespace: "net", ServiceAccount: "agent"}
	for _, tc := range []struct{ image, want string }{
		{"ghcr.io/acme/x", `image ghcr.io/acme/x: policy "acme" does not name subject "net/agent"; ask an admin to add it to the policy's subjects`},
		{"ghcr.io/acme/x/y", `image ghcr.io/acme/x/y: no policy covers it (the nearest, "acme", is for "ghcr.io/acme/*"); an admin must add a BytecodePolicy whose images include "ghcr.io/acme/x/y"`},
		{"ghcr.io/acmeevil/x", `image ghcr.io/acmeevil/x: no policy covers it (the nearest, "acme", is for "ghcr.io/acme/*"); an admin must add a BytecodePolicy whose images include "ghcr.io/acmeevil/x"`},
		{"docker.io/library/x", `image docker.io/library/x: no policy covers it; an admin must add a BytecodePolicy whose images include "docker.io/library/x"`},
	} {
		_, err := ps.For(t.Context(), agent, reference(tc.image))
		wantDenied(t, err)
		if err != nil && err.Error() != tc.want {
			t.Errorf("got  %q\nwant %q", err, tc.want)
		}
	}
}

func TestPodInTheNamespaceOfTheCommandLineIsToldWhy(t *testing.T) {
	ps := Static{only(t, "admins", "ghcr.io/acme/*", "local/root")}
	_, err := ps.For(t.Context(), Subject{Namespace: "local", ServiceAccount: "root"}, reference("ghcr.io/acme/x"))
	wantDenied(t, err, `image ghcr.io/acme/x: policy "admins" does not name subject "local/root", as namespace "local" means users of the command line; use another namespace`)
	if got, err := ps.For(t.Context(), LocalSubject("root"), reference("ghcr.io/acme/x")); err != nil || len(got) != 1 {
		t.Errorf("the command line: got %q, %v", names(got), err)
	}
}

// RBAC is not asked for a PersistentVolume; the subjects of a file are.
func TestFilesNameWhoMountsAPersistentVolume(t *testing.T) {
	tenant := Subject{Namespace: "tenant", ServiceAccount: "default", Persistent: true}
	_, err := Static{only(t, "acme", "ghcr.io/acme/*", "net/agent")}.For(t.Context(), tenant, acmeX)
	wantDenied(t, err, `does not name subject "tenant/default"`)
	if got, err := (Static{only(t, "acme", "ghcr.io/acme/*", "tenant/*")}).For(t.Context(), tenant, acmeX); err != nil || len(got) != 1 {
		t.Errorf("got %q, %v", names(got), err)
	}
}

func TestForTellsEachStep(t *testing.T) {
	ps := Static{
		only(t, "elsewhere", "quay.io/**", "*"),
		only(t, "others", "ghcr.io/acme/*", "web/*"),
		only(t, "mine", "ghcr.io/acme/*", "net/*"),
	}
	var steps []Step
	ctx := WithTrace(t.Context(), func(s Step) { steps = append(steps, s) })
	if _, err := ps.For(ctx, Subject{Namespace: "net", ServiceAccount: "agent"}, acmeX); err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{"policy", "elsewhere", false, "does not cover ghcr.io/acme/x (images: quay.io/**)"},
		{"policy", "others", true, `covers ghcr.io/acme/x by "ghcr.io/acme/*"`},
		{"policy", "mine", true, `covers ghcr.io/acme/x by "ghcr.io/acme/*"`},
		{"subject", "others", false, `does not name "net/agent" (subjects: web/*)`},
		{"subject", "mine", true, `names "net/agent" (subjects: net/*)`},
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

type failing struct{ err error }

func (f failing) For(context.Context, Subject, image.Reference) ([]*Policy, error) {
	return nil, f.err
}

func TestUnionAddsAndKeepsTheTellingDenial(t *testing.T) {
	agent := Subject{Namespace: "net", ServiceAccount: "agent"}
	dir := Static{only(t, "acme", "ghcr.io/acme/*", "web/*")}
	got, err := Union{dir, Static{UnsignedPolicy()}}.For(t.Context(), agent, acmeX)
	if err != nil || len(got) != 1 || got[0].Name != "--allow-unsigned" {
		t.Errorf("got %q, %v", names(got), err)
	}
	_, err = Union{Static{}, dir}.For(t.Context(), agent, acmeX)
	wantDenied(t, err, `policy "acme" does not name subject`)
	down := errors.New("API server is away")
	if _, err := (Union{Static{UnsignedPolicy()}, failing{down}}).For(t.Context(), agent, acmeX); !errors.Is(err, down) {
		t.Errorf("got %v, want the error", err)
	}
}

func TestKeyPolicyIsForWhoIsRootAnyway(t *testing.T) {
	p, err := KeyPolicy("--key", []byte("k"), fakeCompile)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (Static{p}).For(t.Context(), LocalSubject("root"), acmeX); err != nil || len(got) != 1 {
		t.Errorf("got %q, %v", names(got), err)
	}
	if p.Unsigned || len(p.Authorities) != 1 {
		t.Errorf("got %+v, want one authority and nothing unsigned", p)
	}
	everything := Facts{
		Attach:   attach(&volume.Kprobe{Function: "f"}, &volume.XDP{Interfaces: []string{"lo"}, Priority: 1000}),
		Programs: []ProgramFacts{{Instructions: 1 << 20, Helpers: []string{"bpf_probe_write_user", "helper#4711"}}},
		Maps:     []MapFacts{{Name: "m", Bytes: math.MaxUint64, Access: volume.ReadWrite}},
	}
	for _, p := range []*Policy{p, UnsignedPolicy()} {
		if objections := p.Allow.objections(everything); len(objections) > 0 {
			t.Errorf("%s holds back: %q", p.Name, objections)
		}
	}
	if _, err := KeyPolicy("--key", []byte("bad"), fakeCompile); err == nil {
		t.Error("took a bad key")
	}
}
