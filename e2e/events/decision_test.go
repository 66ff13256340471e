// SPDX-License-Identifier: Apache-2.0

package events

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// The daemon's log has one line for each decision, with the same keys whatever came of it, each once.
func TestDaemonLogsDecisions(t *testing.T) {
	n := newNode(t)
	imagetest.PushImage(t, n.Stack.Registry, "acme/unsigned", "v1", bpf.Pass())
	for _, c := range []struct {
		attributes map[string]string
		want       []string
	}{
		{map[string]string{"image": count, "attach": onEth0}, []string{`result="admitted"`, `policy="acme"`, `authority="key[0]"`, `signer="sha256:`, `reason=""`}},
		{map[string]string{"image": "$REGISTRY/acme/unsigned:v1", "attach": onEth0}, []string{`result="refused"`, `policy="acme"`, `authority=""`, `signer=""`, `reason="image `}},
		{map[string]string{"image": "$REGISTRY/acme/none:v1", "attach": onEth0}, []string{`result="failed"`, `digest=""`, `policy=""`, `reason="image `}},
	} {
		before := len(decisions(n))
		req := n.request(t, maps.Clone(c.attributes))
		err := n.publish(t, req)
		if err == nil {
			if err := n.publish(t, req); err != nil { // decided already
				t.Error(err)
			}
			if err := n.unpublish(t, req); err != nil {
				t.Error(err)
			}
		}
		// The log comes by a pipe, in order: what the next call logs comes after it.
		wait := time.Now().Add(callTimeout)
		end := n.request(t, map[string]string{"image": "$REGISTRY/other/x:v1"})
		if err := n.publish(t, end); err == nil {
			t.Fatal("there is a policy for other/")
		}
		for !strings.Contains(strings.Join(decisions(n), ""), `volume="`+end.VolumeId+`"`) && time.Now().Before(wait) {
			time.Sleep(time.Millisecond)
		}
		told := slices.DeleteFunc(decisions(n)[before:], func(line string) bool { return strings.Contains(line, `volume="`+end.VolumeId+`"`) })
		if len(told) != 1 {
			t.Errorf("%s: %d decisions were logged: %q", c.attributes["image"], len(told), told)
			continue
		}
		pod := `pod="` + req.VolumeContext["csi.storage.k8s.io/pod.namespace"] + "/" + req.VolumeContext["csi.storage.k8s.io/pod.name"] + `"`
		for _, want := range append(c.want, pod, `podUID="`, `serviceAccount="team/app"`, `volume="`+req.VolumeId+`"`, `image="`+req.VolumeContext["image"]+`"`, `digest="`) {
			if strings.Count(told[0], want) != 1 {
				t.Errorf("%s is not once in %s", want, told[0])
			}
		}
	}
}

func decisions(n *node) []string {
	var lines []string
	for line := range strings.Lines(n.log.String()) {
		if strings.Contains(line, `"volume decided"`) {
			lines = append(lines, line)
		}
	}
	return lines
}
