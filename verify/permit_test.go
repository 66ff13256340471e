// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// granted is a Signed with one grant per allow text, policies p0, p1, ...
func granted(t testing.TB, allows ...string) Signed {
	t.Helper()
	s := Signed{ref: acmeX, digest: d1}
	for i, text := range allows {
		p := policyOf(t, head+"  allow: {"+text+"}")
		p.Name = "p" + string(rune('0'+i))
		s.grants = append(s.grants, Grant{Policy: p})
	}
	return s
}

func attach(hooks ...volume.Hook) []volume.Attach {
	var out []volume.Attach
	for _, h := range hooks {
		out = append(out, volume.Attach{Program: "prog", Hook: h})
	}
	return out
}

func TestPermit(t *testing.T) {
	xdp := func(priority int, interfaces ...string) volume.Hook {
		return &volume.XDP{Interfaces: interfaces, Priority: priority}
	}
	tc := func(priority int, interfaces ...string) volume.Hook {
		return &volume.TC{Interfaces: interfaces, Priority: priority}
	}
	tracepoint := &volume.Tracepoint{Group: "sched", Name: "sched_switch"}
	for _, c := range []struct {
		name, allow string
		facts       Facts
		want        string // "" when permitted
	}{
		{"nothing asked", "", Facts{}, ""},
		{"defaults: xdp, tc, tracepoint", "", Facts{Attach: attach(xdp(0, "eth0"), tc(1000, "lo"), tracepoint)}, ""},
		{"defaults: no kprobe", "", Facts{Attach: attach(&volume.Kprobe{Function: "f"})}, `hook "kprobe" for program "prog" (it allows xdp, tc, tracepoint)`},
		{"defaults: no rw", "", Facts{Maps: []MapFacts{{Name: "m", Access: volume.ReadWrite}}}, `map "m" as rw (it allows none)`},
		{"defaults: ro", "", Facts{Maps: []MapFacts{{Name: "m", Access: volume.ReadOnly, Bytes: 1 << 20}}}, ""},
		{"defaults: 64 MiB of maps", "", Facts{Maps: []MapFacts{{Bytes: 32 << 20}, {Bytes: 32 << 20}}}, ""},
		{"defaults: a byte more", "", Facts{Maps: []MapFacts{{Bytes: 64 << 20}, {Bytes: 1}}}, "67108865 bytes of maps (it allows 67108864)"},
		{"more than the default", "maxMapBytes: 1Gi", Facts{Maps: []MapFacts{{Bytes: 1 << 30}}}, ""},
		{"defaults: any number of programs and instructions", "", Facts{Programs: make([]ProgramFacts, 500)}, ""},
		{"programs", "maxPrograms: 2", Facts{Programs: make([]ProgramFacts, 2)}, ""},
		{"a program too many", "maxPrograms: 2", Facts{Programs: make([]ProgramFacts, 3)}, "3 programs (it allows 2)"},
		{"instructions of each", "maxInstructions: 100", Facts{Programs: []ProgramFacts{{Instructions: 100}, {Instructions: 100}}}, ""},
		{"an instruction too many", "maxInstructions: 100", Facts{Programs: []ProgramFacts{{}, {Name: "b", Instructions: 101}}}, `101 instructions in program "b" (it allows 100)`},
		{"defaults: any helper", "", Facts{Programs: []ProgramFacts{{Helpers: []string{"bpf_probe_write_user"}}}}, ""},
		{"kretprobe is not kprobe", "hooks: [kprobe]", Facts{Attach: attach(&volume.Kprobe{Function: "f", Return: true})}, `hook "kretprobe"`},
		{"no hooks", "hooks: []", Facts{Attach: attach(tracepoint)}, `hook "tracepoint" for program "prog" (it allows none)`},
		{"interface", `interfaces: ["eth*"]`, Facts{Attach: attach(xdp(500, "eth0", "eth1.5"))}, ""},
		{"other interface", `interfaces: ["eth*"]`, Facts{Attach: attach(xdp(500, "eth0", "lo"))}, `interface "lo" for program "prog" (it allows eth*)`},
		{"interface of tc", `interfaces: ["eth*"]`, Facts{Attach: attach(tc(500, "beth0"))}, `interface "beth0"`},
		{"interface of netkit", `hooks: [netkit], interfaces: ["eth*"]`, Facts{Attach: attach(&volume.Netkit{Interfaces: []string{"nk0"}})}, `interface "nk0"`},
		{"unresolved interface", `interfaces: ["eth*"]`, Facts{Attach: attach(xdp(500, "@default-route"))}, `interface "@default-route"`},
		{"no interface needed", `interfaces: []`, Facts{Attach: attach(tracepoint)}, ""},
		{"priority", "priority: {min: 100, max: 900}", Facts{Attach: attach(xdp(100, "a"), tc(900, "a"))}, ""},
		{"priority below", "priority: {min: 100, max: 900}", Facts{Attach: attach(xdp(99, "a"))}, `priority 99 for program "prog" (it allows 100 to 900)`},
		{"priority above", "priority: {min: 100, max: 900}", Facts{Attach: attach(tc(901, "a"))}, `priority 901`},
		{"netfilter's priority is the kernel's", "hooks: [netfilter], priority: {min: 100}", Facts{Attach: attach(&volume.Netfilter{Priority: -5})}, ""},
		{"rw", `writableMaps: ["config*"]`, Facts{Maps: []MapFacts{{Name: "config_v1", Access: volume.ReadWrite}}}, ""},
		{"rw of another", `writableMaps: ["config*"]`, Facts{Maps: []MapFacts{{Name: "stats", Access: volume.ReadWrite}}}, `map "stats" as rw (it allows config*)`},
		{"bytes together", "maxMapBytes: 1Ki", Facts{Maps: []MapFacts{{Bytes: 512}, {Bytes: 512}}}, ""},
		{"a byte too many", "maxMapBytes: 1Ki", Facts{Maps: []MapFacts{{Bytes: 512}, {Bytes: 513}}}, "1025 bytes of maps (it allows 1024)"},
		{"bytes overflow", "maxMapBytes: 1Ki", Facts{Maps: []MapFacts{{Bytes: 1 << 63}, {Bytes: 1 << 63}, {Bytes: 1}}}, "bytes of maps (it allows 1024)"},
		{"no bytes", "maxMapBytes: 0", Facts{Maps: []MapFacts{{Bytes: 1}}}, "1 bytes of maps (it allows 0)"},
		{"helper", "helpers: {deny: [bpf_probe_write_user]}", Facts{Programs: []ProgramFacts{{Name: "a", Helpers: []string{"bpf_redirect"}}}}, ""},
		{"denied helper", "helpers: {deny: [bpf_probe_write_user]}", Facts{Programs: []ProgramFacts{{}, {Name: "a", Helpers: []string{"bpf_redirect", "bpf_probe_write_user"}}}}, `helper "bpf_probe_write_user", which program "a" calls`},
		{"denied without its prefix", "helpers: {deny: [probe_write_user]}", Facts{Programs: []ProgramFacts{{Name: "a", Helpers: []string{"bpf_probe_write_user"}}}}, "helper"},
		{"the program leaves the prefix out", "helpers: {deny: ['kfunc:bpf_task_acquire']}", Facts{Programs: []ProgramFacts{{Name: "a", Helpers: []string{"task_acquire"}}}}, `helper "task_acquire"`},
		{"denied by number", "helpers: {deny: ['helper#4711']}", Facts{Programs: []ProgramFacts{{Name: "a", Helpers: []string{"helper#4711"}}}}, `helper "helper#4711", which program "a" calls`},
		{"many objections", "hooks: [], interfaces: []", Facts{Attach: attach(xdp(1, "a"), tc(1, "b"))}, `hook "xdp" for program "prog" (it allows none) (and 3 more)`},
	} {
		g, err := granted(t, c.allow).Permit(t.Context(), c.facts)
		if c.want == "" {
			if err != nil || g.Policy.Name != "p0" {
				t.Errorf("%s: got %+v, %v", c.name, g, err)
			}
			continue
		}
		wantDenied(t, err, `policy "p0" does not allow `, c.want, "image ghcr.io/acme/x@sha256:")
	}
}

// Each objection is explained in docs/events.md, in the words that a user reads.
func TestObjectionsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []*regexp.Regexp
	for _, m := range regexp.MustCompile("(?m)^  - `([^`]*)`").FindAllStringSubmatch(string(text), -1) {
		pattern := regexp.MustCompile("<[^<>]+>").ReplaceAllString(regexp.QuoteMeta(m[1]), ".*")
		documented = append(documented, regexp.MustCompile("^"+pattern+"$"))
	}
	nothing := Allow{DenyHelpers: []string{"bpf_redirect"}, MaxMapBytes: new(uint64), MinPriority: 1, MaxPriority: 2, MaxPrograms: 1, MaxInstructions: 1}
	objections := nothing.objections(Facts{
		Attach:   attach(&volume.XDP{Interfaces: []string{"eth0"}}),
		Programs: []ProgramFacts{{Name: "a", Instructions: 2, Helpers: []string{"bpf_redirect"}}, {}},
		Maps:     []MapFacts{{Name: "m", Bytes: 1, Access: volume.ReadWrite}},
	})
	if len(objections) != 8 {
		t.Errorf("got %d objections; a new one is to be asked for here: %q", len(objections), objections)
	}
	for _, o := range objections {
		if !slices.ContainsFunc(documented, func(r *regexp.Regexp) bool { return r.MatchString(o) }) {
			t.Errorf("docs/events.md does not explain: %s", o)
		}
	}
	if len(documented) != len(objections) {
		t.Errorf("docs/events.md explains %d objections, there are %d", len(documented), len(objections))
	}
}

func TestPermitTellsWhatItJudges(t *testing.T) {
	var steps []string
	ctx := WithTrace(t.Context(), func(s Step) { steps = append(steps, fmt.Sprintf("%s %s %t %s", s.Stage, s.Policy, s.OK, s.Text)) })
	_, err := granted(t, "hooks: [tc]", "writableMaps: ['*']").Permit(ctx, Facts{
		Attach:   attach(&volume.XDP{Interfaces: []string{"eth0"}}),
		Programs: []ProgramFacts{{Name: "prog", Instructions: 7, Helpers: []string{"bpf_redirect"}}},
		Maps:     []MapFacts{{Name: "m", Bytes: 8, Access: volume.ReadWrite, PinByName: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`object  true program "prog": 7 instructions, calls bpf_redirect`,
		`object  true program "prog" attaches to xdp eth0`,
		`object  true 1 maps of together 8 bytes at most`,
		`object  true map "m" is writable for the pod`,
		`object  true map "m" asks to be pinned by name for the whole machine; it stays in its volume`,
		`allow p0 false does not allow hook "xdp" for program "prog" (it allows tc)`,
		`allow p0 false does not allow map "m" as rw (it allows none)`,
		`allow p1 true allows everything that the programs would do`,
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

func TestPermitTakesTheFirstPolicyThatAllowsAll(t *testing.T) {
	f := Facts{Attach: attach(&volume.XDP{Interfaces: []string{"eth0"}}), Maps: []MapFacts{{Name: "m", Access: volume.ReadWrite}}}
	g, err := granted(t, "hooks: [tc]", "writableMaps: [m]", "writableMaps: ['*']").Permit(t.Context(), f)
	if err != nil || g.Policy.Name != "p1" {
		t.Errorf("got %+v, %v, want p1", g.Policy, err)
	}
	// What two policies allow together, neither does.
	_, err = granted(t, "hooks: [tc], writableMaps: [m], interfaces: []", "hooks: [xdp]").Permit(t.Context(), f)
	wantDenied(t, err, `policy "p1" does not allow map "m" as rw`)
}

func TestDenialStaysShortWhateverTheNames(t *testing.T) {
	long := strings.Repeat("x", 5000)
	_, err := granted(t, `interfaces: ["a","b","c","d","e","f","g"]`).Permit(t.Context(), Facts{
		Attach: []volume.Attach{{Program: long, Hook: &volume.XDP{Interfaces: []string{long}}}},
	})
	wantDenied(t, err, "a, b, c, d, e and 2 more")
}
