// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"strings"
	"testing"

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
		{"defaults: ro", "", Facts{Maps: []MapFacts{{Name: "m", Access: volume.ReadOnly, Bytes: 1 << 40}}}, ""},
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
