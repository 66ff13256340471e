// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

func TestEachDecisionIsToldOnce(t *testing.T) {
	f := newFixture(t)
	var told []Decision
	f.opts.Decided = func(_ context.Context, d Decision) { told = append(told, d) }
	f.restart(t)
	var log bytes.Buffer
	// As the CSI server's log: pod and volume are known to every line.
	logger := klog.LoggerWithValues(textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&log))), "volume", "v", "pod", klog.KRef("team", "pod"))
	ctx := klog.NewContext(t.Context(), logger)

	good := f.request(t, f.signed(t, "hooks", hooks()), onGetpgid)
	unsigned := f.push(t, "unsigned", hooks())

	for _, c := range []struct {
		name   string
		change func(*Request)
		want   Result // "": nothing was decided
		policy string
		digest bool
	}{
		{"refused: nobody signed it", func(r *Request) { r.Attributes["image"] = unsigned.String() }, Refused, "acme", true},
		{"refused: no policy", func(r *Request) { r.Attributes["image"] = f.registry.Host + "/other/x:v1" }, Refused, "acme", false},
		{"refused: not this one's", func(r *Request) { r.Subject.ServiceAccount = "other" }, Refused, "acme", false},
		{"refused: host", func(r *Request) {
			r.Attributes["image"] = strings.Replace(unsigned.String(), f.registry.Host, "192.0.2.1:5000", 1)
		}, Refused, "", false},
		{"failed: no such image", func(r *Request) { r.Attributes["image"] = f.registry.Host + "/acme/nothing:v1" }, Failed, "", false},
		{"failed: no such program", func(r *Request) { r.Attributes["attach"] = "{program: nothing, xdp: {interface: lo}}" }, Failed, "", true},
		{"failed: no such interface", func(r *Request) { r.Attributes["attach"] = "{program: on_packet, xdp: {interface: nothing0}}" }, Failed, "", true},
		{"undecided: no attribute", func(r *Request) { r.Attributes["color"] = "red" }, "", "", false},
		{"admitted", func(*Request) {}, Admitted, "acme", true},
		{"repeated", func(*Request) {}, "", "", false},
		{"repeated with other arguments", func(r *Request) { r.ReadOnly = true }, "", "", false},
	} {
		told = nil
		log.Reset()
		req := good
		req.Attributes = map[string]string{"image": good.Attributes["image"], "attach": good.Attributes["attach"]}
		c.change(&req)
		err := f.Publish(ctx, req)
		var lines []string
		for line := range strings.Lines(log.String()) {
			if strings.Contains(line, "volume decided") {
				lines = append(lines, line)
			}
		}
		if c.want == "" {
			if len(told) != 0 || len(lines) != 0 {
				t.Errorf("%s: told %+v, logged %q", c.name, told, lines)
			}
			continue
		}
		if len(told) != 1 || len(lines) != 1 {
			t.Errorf("%s: told %d times, logged %d times: %q", c.name, len(told), len(lines), lines)
			continue
		}
		d := told[0]
		if d.Result() != c.want || d.Policy != c.policy || (d.Digest != "") != c.digest || !errors.Is(d.Err, err) || d.Pod != req.Pod || d.Subject != req.Subject {
			t.Errorf("%s: got %+v (%s), want policy %q", c.name, d, d.Result(), c.policy)
		}
		if admitted := c.want == Admitted; (d.Authority == "key[0]") != admitted || (d.Signer != "") != admitted {
			t.Errorf("%s: authority %q, signer %q", c.name, d.Authority, d.Signer)
		}
		for _, part := range []string{
			fmt.Sprintf(`result=%q`, c.want), `pod="team/pod"`, `podUID="` + req.Pod.UID + `"`, fmt.Sprintf(`serviceAccount=%q`, req.Subject), "persistent=false",
			fmt.Sprintf("image=%q", d.Image), fmt.Sprintf("digest=%q", d.Digest), fmt.Sprintf("policy=%q", d.Policy),
			fmt.Sprintf("authority=%q", d.Authority), fmt.Sprintf("signer=%q", d.Signer), "reason=",
		} {
			if strings.Count(lines[0], part) != 1 {
				t.Errorf("%s: %s is not once in %s", c.name, part, lines[0])
			}
		}
		if err != nil && !strings.Contains(lines[0], fmt.Sprintf("%q", err.Error())) {
			t.Errorf("%s: the reason %q is not in %s", c.name, err, lines[0])
		}
	}
	volumes, err := f.List()
	if err != nil || len(volumes) != 1 || volumes[0].Targets[0].Authority != "key[0]" || volumes[0].Targets[0].Policy != "acme" {
		t.Errorf("record: %+v, %v", volumes, err)
	}
	if err := f.Unpublish(f.ctx, good.VolumeID, good.Target); err != nil {
		t.Error(err)
	}
}

// A dry run needs no directories and leaves none, and gives the same answer in the same words.
func TestDryRunDecidesAsPublishDoes(t *testing.T) {
	f := newFixture(t)
	opts := f.opts
	opts.StateDir, opts.BPFFSDir = filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "bpffs")
	dry := Look(opts)
	image := f.signed(t, "hooks", hooks())
	unsigned := f.push(t, "unsigned", hooks()).String()
	for what, change := range map[string]func(*Request){
		"good":              func(*Request) {},
		"unsigned":          func(r *Request) { r.Attributes["image"] = unsigned },
		"other subject":     func(r *Request) { r.Subject.Namespace = "other" },
		"other image":       func(r *Request) { r.Attributes["image"] = f.registry.Host + "/other/x" },
		"rw":                func(r *Request) { r.Attributes["maps"] = "hits:rw" },
		"no such program":   func(r *Request) { r.Attributes["attach"] = "{program: nothing, tracepoint: a/b}" },
		"unknown attribute": func(r *Request) { r.Attributes["color"] = "red" },
	} {
		req := f.request(t, image, onGetpgid)
		change(&req)
		d := dry.DryRun(f.ctx, req)
		err := f.Publish(f.ctx, req)
		if fmt.Sprint(d.Err) != fmt.Sprint(err) {
			t.Errorf("%s: the dry run says %v, publish %v", what, d.Err, err)
		}
		if (d.Result() == Admitted) != (err == nil) {
			t.Errorf("%s: %s", what, d.Result())
		}
		if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{opts.StateDir, opts.BPFFSDir} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the dry run made %s: %v", dir, err)
		}
	}
}

// A machine that asks what would happen need not be the node: what is not here is judged by its name, and said.
func TestDryRunJudgesMissingInterfacesByName(t *testing.T) {
	f := newFixture(t)
	image := f.signed(t, "pass", bpf.Pass())
	for _, c := range []struct {
		allow, asked string
		want         string // "" where it is admitted
	}{
		{`interfaces: ["ens*"]`, "[ens5, ens6]", ""},
		{`interfaces: ["ens*"]`, "[ens5, eth7]", `does not allow interface "eth7" for program "pass" (it allows ens*)`},
		{`interfaces: ["ens*"]`, "'@default-route'", `does not allow interface "@default-route" for program "pass" (it allows ens*)`},
		{"", "'@default-route'", ""},
	} {
		f.opts.Policies = f.policy(t, f.public, c.allow)
		var steps []verify.Step
		ctx := verify.WithTrace(f.ctx, func(s verify.Step) { steps = append(steps, s) })
		var d Decision
		ns := bpftest.NewNetNS(t) // with no interface but lo, and no route
		err := ns.Do(func() error {
			d = Look(f.opts).DryRun(ctx, f.request(t, image, "{program: pass, xdp: {interface: "+c.asked+"}}"))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if (d.Err == nil) != (c.want == "") || !strings.Contains(fmt.Sprint(d.Err), c.want) {
			t.Errorf("%s for %s: got %v, want %q", c.allow, c.asked, d.Err, c.want)
		}
		told := false
		for _, s := range steps {
			told = told || s.Stage == "interface" && !s.OK && strings.HasSuffix(s.Text, "; judged by its name")
		}
		if !told {
			t.Errorf("%s: not told that interfaces are missing: %+v", c.asked, steps)
		}
	}
}

// What a policy judges is the interface that programs get, not the word that stands for it.
func TestDefaultRouteIsJudgedByWhereItLeads(t *testing.T) {
	f := newFixture(t)
	image := f.signed(t, "pass", bpf.Pass())
	ns := bpftest.NewNetNS(t)
	ns.Veth(t, "uplink0", "other0")
	err := ns.Do(func() error {
		l, err := netlink.LinkByName("uplink0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.1.0.1/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("10.1.0.2")})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ allow, interfaces, want string }{
		{`interfaces: ["uplink*"]`, "'@default-route'", ""},
		{`interfaces: ["uplink*"]`, "['@default-route', uplink0]", ""},
		{`interfaces: ["other*"]`, "'@default-route'", `policy "acme" does not allow interface "uplink0" for program "pass" (it allows other*)`},
		{`interfaces: ["@default-route"]`, "'@default-route'", `policy "acme" does not allow interface "uplink0"`},
		{`interfaces: ["uplink*"]`, "['@default-route', other0]", `policy "acme" does not allow interface "other0"`},
	} {
		f.opts.Policies = f.policy(t, f.public, c.allow)
		f.restart(t)
		req := f.request(t, image, "{program: pass, xdp: {interface: "+c.interfaces+"}}")
		err := ns.Do(func() error { return f.Publish(f.ctx, req) })
		if (err == nil) != (c.want == "") || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s for %s: got %v, want %q", c.allow, c.interfaces, err, c.want)
		}
		if err := f.Unpublish(f.ctx, req.VolumeID, req.Target); err != nil {
			t.Error(err)
		}
	}
}

// Labels say what an image's author wants to be believed. They say xdp, which the policy allows; the program is a
// tracepoint's.
func TestLabelsAreNotBelieved(t *testing.T) {
	f := newFixture(t)
	f.opts.Policies = f.policy(t, f.public, "hooks: [xdp]")
	f.restart(t)
	for _, form := range []imagetest.Format{
		imagetest.BPFMan, // its labels say {"count":"xdp"}
		imagetest.ORAS,   // has none
	} {
		ref := f.sign(t, f.push(t, strings.ToLower("labels-"+string(form)), hooks(), form))
		req := f.request(t, ref, onGetpgid)
		err := f.Publish(f.ctx, req)
		if !errors.As(err, new(*verify.DeniedError)) || !strings.Contains(err.Error(), `does not allow hook "tracepoint" for program "on_tracepoint" (it allows xdp)`) {
			t.Errorf("%s: got %v", form, err)
		}
		f.wantNothing(t, req)
	}
}

// What was admitted once is in the cache. That is no reason to admit it again.
func TestRevokedPolicyHoldsForTheCache(t *testing.T) {
	f := newFixture(t)
	image := f.signed(t, "hooks", hooks())
	again := func(pullPolicy string) Request {
		req := f.request(t, image, onGetpgid)
		if pullPolicy != "" {
			req.Attributes["pullPolicy"] = pullPolicy
		}
		return req
	}
	warm := again("")
	f.publish(t, warm)
	_, otherKey, err := cosign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	acme := f.opts.Policies
	for _, c := range []struct {
		name       string
		policies   verify.Static
		pullPolicy string
		want       string
		asks       bool // the registry, for newer signatures
	}{
		{"the policy is gone", nil, "", "no policy is in force", false},
		{"its key is gone", f.policy(t, otherKey, ""), "Never", `no signature by policy "acme" (found 1: by another key)`, false},
		{"its key is gone, and somebody else could have signed since", f.policy(t, otherKey, ""), "", `no signature by policy "acme" (found 1: by another key)`, true},
		{"it allows less", f.policy(t, f.public, "hooks: [xdp]"), "", `does not allow hook "tracepoint"`, false},
	} {
		f.opts.Policies = c.policies
		f.restart(t)
		f.registry.Requests()
		req := again(c.pullPolicy)
		err := f.Publish(f.ctx, req)
		if !errors.As(err, new(*verify.DeniedError)) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
		if asked := f.registry.Requests(); (len(asked) > 0) != c.asks {
			t.Errorf("%s: the registry was asked %q", c.name, asked)
		}
		if _, err := os.Lstat(req.Target); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a target was left: %v", c.name, err)
		}
	}
	// What runs, runs on: a policy is asked when a pod comes.
	wantCounted(t, warm.Target, 1)
	f.opts.Policies = acme
	f.restart(t)
	f.registry.Requests()
	f.publish(t, again(""))
	if asked := f.registry.Requests(); len(asked) > 0 {
		t.Errorf("admitted again from the cache: the registry was asked %q", asked)
	}
}
