// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const eventFields = `jsonpath={range .items[*]}{.type} {.reason} {.involvedObject.kind} {.involvedObject.name} {.involvedObject.uid} x{.count} {.source.component} {.source.host}: {.message}{"\n"}{end}`

// The rights of deploy/rbac.yaml suffice, and `kubectl describe pod` finds the event.
func TestRefusalIsAnEventOnThePod(t *testing.T) {
	n := startNode(t)
	n.Kubectl(t, "create", "namespace", "shop")
	n.Apply(t, `{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: shop}}`)
	n.Apply(t, `{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop}, spec: {containers: [{name: c, image: x}]}}`)
	web := Pod{"shop", "web-0", n.Kubectl(t, "get", "pod", "-n", "shop", "web-0", "-o", "jsonpath={.metadata.uid}")}
	e := n.client(t).Events("node-1")
	run(t, e.Run)

	events := func() string { return n.Kubectl(t, "get", "events", "-n", "shop", "-o", eventFields) }
	e.Refused(web, notFor)
	want := "Warning BytecodeRefused Pod web-0 " + web.UID + " x1 bpfvol node-1: " + notFor + "\n"
	soon(t, "the event", 10*time.Second, func() bool { return events() == want })

	e.Refused(web, notFor)
	e.Refused(web, notFor)
	want = strings.Replace(want, "x1", "x3", 1)
	soon(t, "it counts up", 10*time.Second, func() bool { return events() == want })

	n.Kubectl(t, "delete", "events", "-n", "shop", "--all")
	e.Refused(web, notFor)
	want = strings.Replace(want, "x3", "x1", 1)
	soon(t, "it is made anew", 10*time.Second, func() bool { return events() == want })

	if got := n.Kubectl(t, "describe", "pod", "-n", "shop", "web-0"); !strings.Contains(got, "BytecodeRefused") {
		t.Errorf("kubectl describe pod: %s", got)
	}
}

func TestEventsHoldUpNothing(t *testing.T) {
	arrived := make(chan struct{}, 1)
	o := startOdd(t, review(`{"allowed": true}`), func(w http.ResponseWriter, r *http.Request) {
		select {
		case arrived <- struct{}{}:
		default:
		}
		hangs(w, r)
	})
	c := o.client(t)
	e := c.Events("node-1")
	run(t, e.Run)
	e.Refused(Pod{"shop", "web-0", "0b3f"}, notFor)
	<-arrived // and is not answered
	start := time.Now()
	for range 100_000 {
		e.Refused(Pod{"shop", "web-0", "0b3f"}, notFor)
	}
	if took := time.Since(start); took > answerIn {
		t.Errorf("100000 refusals took %s", took)
	}
	if n := len(e.queue); n > waiting {
		t.Errorf("%d events wait", n)
	}
	p := follow(t, c, nil)
	soon(t, "the policies are known", 10*time.Second, func() bool { return p.Err() == nil })
	wantUsable(t, p, pod("shop", "web"), acmeImage, "acme")
}

func TestEventTextIsBounded(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"image x: not found", "image x: not found"},
		{"a\nb\x1b[31mc\xff", "a b [31mc\ufffd"},
		{strings.Repeat("é", 400), strings.Repeat("é", 350)},
		{"x" + strings.Repeat("é", 400), "x" + strings.Repeat("é", 349)},
	} {
		if got := bounded(c.text); got != c.want || !utf8.ValidString(got) {
			t.Errorf("%.40q: got %q", c.text, got)
		}
	}
}
