// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
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
		"CAP_SYSLOG":     wantNoSymbol,
	}
	for capability, test := range tests {
		t.Run(capability, func(t *testing.T) {
			node, _ := bpftest.Pair(t)
			test(t, nodetest.Start(t, nodetest.Options{NetNS: node, Container: true, Without: strings.ToLower(capability)}))
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

func wantNoSymbol(t *testing.T, n *nodetest.Node) {
	if paranoid, err := os.ReadFile("/proc/sys/kernel/perf_event_paranoid"); err == nil && strings.TrimSpace(string(paranoid)) < "2" {
		t.Skip("kernel.perf_event_paranoid is below 2: the kernel shows its addresses to everybody (kernel/ksyms_common.c)")
	}
	n.StartDaemon(t)
	image := n.Signed(t, "members", filepath.Join("..", "..", "bpf", "members", "xdp.bpf.o"))
	err := n.New(map[string]string{"image": image, "attach": "{program: ksym, xdp: veth0}"}).SetUp(t.Context())
	if err == nil || !strings.Contains(err.Error(), "bpf_prog_put") {
		t.Errorf("a volume with a program that names a kernel symbol: %v, want that it is not found", err)
	}
	n.Publish(t, map[string]string{"image": image, "attach": "{program: core, xdp: veth0}"}) // and one that does not
}

// Of root's capabilities the daemon has none left that goes past the mode of a file.
func TestBinaryThatRootMayNotReadIsRefused(t *testing.T) {
	_, libc := nodetest.Hostid(t)
	text, err := os.ReadFile(libc)
	if err != nil {
		t.Fatal(err)
	}
	n := nodetest.Start(t, nodetest.Options{})
	private := filepath.Join(n.Dir, "libprivate.so")
	if err := os.WriteFile(private, text, 0o600); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if err := os.Chown(private, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	err = n.New(map[string]string{
		"image": n.Signed(t, "hooks", object("hooks")), "attach": "{program: on_uprobe, uprobe: " + private + ":gethostid}",
	}).SetUp(t.Context())
	if err == nil || !strings.Contains(err.Error(), "permission denied; make it readable") {
		t.Errorf("a uprobe in a file that only its owner may read: %v", err)
	}
}

// The document and the chart give the node plugin's pod what it needs, no more, and say why.
func TestDocumentGivesWhatIsNeeded(t *testing.T) {
	var want []string
	for _, c := range privilege.Needed(true) {
		want = append(want, fmt.Sprintf("- %s # %s", strings.TrimPrefix(privilege.Names([]privilege.Capability{c}), "CAP_"), c.Why))
	}
	for _, file := range []string{"docs/adr/0004-unprivileged-pod.md", "deploy/helm/bpfvol/templates/daemonset.yaml"} {
		text, err := os.ReadFile(filepath.Join("..", "..", file))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		_, list, _ := strings.Cut(string(text), " add:\n")
		for line := range strings.Lines(list) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "- ") {
				break
			}
			got = append(got, line)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}
