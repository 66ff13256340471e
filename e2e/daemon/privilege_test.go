// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/privilege"
)

func TestDaemonKeepsOnlyWhatItNeeds(t *testing.T) {
	inBothPlaces(t, nil, func(t *testing.T, n *nodetest.Node) {
		// Publishing starts threads, which have what their makers have.
		n.Publish(t, map[string]string{"image": n.Signed(t, "hooks", object("hooks")), "attach": onGetpgid})
		var needed uint64
		for _, c := range privilege.Needed(strings.HasSuffix(t.Name(), "container")) {
			needed |= 1 << c.Value
		}
		want := map[string]string{"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1"}
		for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
			want[set] = fmt.Sprintf("%016x", needed)
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", n.DaemonPID()))
		if err != nil || len(threads) < 2 {
			t.Fatalf("threads: %v, %v", threads, err)
		}
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			if err != nil {
				continue // it has ended
			}
			for line := range strings.Lines(string(text)) {
				name, got, _ := strings.Cut(strings.TrimSpace(line), ":\t")
				if want, ok := want[name]; ok && got != want {
					t.Errorf("%s: %s is %s, want %s", thread, name, got, want)
				}
			}
		}
	})
}

// CAP_NET_ADMIN has its test where one kernel can do both: TestOnlyClsactTakesNetAdmin.
func TestEveryCapabilityIsNeeded(t *testing.T) {
	tests := map[string]func(*testing.T, *nodetest.Node){
		"CAP_SYS_ADMIN":  wantNoStart("operation not permitted"),
		"CAP_SYS_PTRACE": wantNoStart("/ns/net: permission denied"),
		"CAP_SYS_CHROOT": wantNoStart("/ns/mnt: operation not permitted"),
		"CAP_CHOWN":      wantNoGroup,
	}
	for capability, test := range tests {
		t.Run(capability, func(t *testing.T) {
			test(t, nodetest.Start(t, nodetest.Options{Container: true, Without: strings.ToLower(capability)}))
		})
	}
	for _, c := range privilege.Needed(true) {
		if name := privilege.Names([]privilege.Capability{c}); tests[name] == nil && name != "CAP_NET_ADMIN" {
			t.Errorf("nothing shows that %s is needed", name)
		}
	}
}

func wantNoStart(text string) func(*testing.T, *nodetest.Node) {
	return func(t *testing.T, n *nodetest.Node) {
		if _, err := n.Stack.StartDaemon(t.Context()); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("the daemon starts: %v, want %q", err, text)
		}
	}
}

func wantNoGroup(t *testing.T, n *nodetest.Node) {
	n.StartDaemon(t)
	group := int64(2000)
	attributes := map[string]string{"image": n.Signed(t, "hooks", object("hooks")), "attach": onGetpgid}
	pod := kubelet.Pod{Namespace: "e2e", Name: "group", UID: "00000000-0000-4000-8000-00000000c0de", ServiceAccount: "app", FSGroup: &group}
	err := n.NewFor(pod, kubelet.Volume{Name: "bpf", Attributes: attributes}).SetUp(t.Context())
	if err == nil || !strings.Contains(err.Error(), "chown") {
		t.Errorf("a volume for a pod with fsGroup: %v, want that chown fails", err)
	}
	n.Publish(t, attributes) // for one without
}

// What the node plugin asks for is what its document says, with the same reasons.
func TestDocumentGivesWhatIsNeeded(t *testing.T) {
	text, err := os.ReadFile("../../docs/adr/0004-unprivileged-pod.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(text), "add:\n")
	list, _, _ = strings.Cut(list, "volumeMounts:")
	var want strings.Builder
	for _, c := range privilege.Needed(true) {
		fmt.Fprintf(&want, "        - %s # %s\n", strings.TrimPrefix(privilege.Names([]privilege.Capability{c}), "CAP_"), c.Why)
	}
	if got := strings.TrimSuffix(list, "    "); got != want.String() {
		t.Errorf("the pod adds\n%swant\n%s", got, want.String())
	}
}
