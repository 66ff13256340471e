// SPDX-License-Identifier: Apache-2.0

package sanity_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onsi/ginkgo/v2/types"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

const podUID = "0b3f2c1e-7a54-4c5d-9a58-0e5a1f6b7c8d"

// All of the suite that a driver like this one can be asked runs, and passes: for volumes that are written in a pod, and
// for PersistentVolumes.
func TestSanity(t *testing.T) {
	for _, ephemeral := range []bool{true, false} {
		name := "persistent"
		if ephemeral {
			name = "inline"
		}
		t.Run(name, func(t *testing.T) { sane(t, ephemeral) })
	}
}

func sane(t *testing.T, ephemeral bool) {
	node, peer := bpftest.Pair(t)
	n := nodetest.Start(t, nodetest.Options{NetNS: node, Serve: []string{"--controller", "--volume-health"}})
	image := n.Signed(t, "count", "../../bpf/count.bpf.o")
	// kubelet makes all but the last two directories.
	volumes := filepath.Join(n.KubeletDir(), "pods", podUID, "volumes", "kubernetes.io~csi")
	if err := os.MkdirAll(volumes, 0o750); err != nil {
		t.Fatal(err)
	}
	bpftest.NothingLeft(t, n.Kept()...)

	k := &kubelet{podInfo: map[string]string{
		"csi.storage.k8s.io/pod.name":            "sanity-0",
		"csi.storage.k8s.io/pod.namespace":       "e2e",
		"csi.storage.k8s.io/pod.uid":             podUID,
		"csi.storage.k8s.io/serviceAccount.name": "app",
		"csi.storage.k8s.io/ephemeral":           fmt.Sprint(ephemeral),
	}}
	// What the suite takes for published must be a volume: its program runs, and the pod reads what it counts.
	k.check = func(target string) error {
		before, err := packets(target)
		if err != nil {
			return err
		}
		const sent = 4
		if err := send(peer, node.Addr, sent); err != nil {
			return err
		}
		after, err := packets(target)
		if err == nil && after-before != sent {
			err = fmt.Errorf("its program counted %d of %d packets", after-before, sent)
		}
		return err
	}
	specs := suite{
		Endpoint:   k.serve(t, n.Endpoint()),
		TargetDir:  filepath.Join(volumes, "sanity"),
		Parameters: map[string]string{"image": image, "attach": "{program: count, xdp: veth0}", "maps": "flows"},
	}.run(t)
	judge(t, specs)
	if k.publishes.Load() == 0 {
		t.Error("the suite published no volume")
	}
	t.Logf("%d calls of NodePublishVolume succeeded, each with packets counted in the kernel", k.publishes.Load())
}

// send sends n datagrams from a namespace.
func send(from *bpftest.NetNS, to netip.Addr, n int) error {
	return from.Do(func() error {
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.WriteToUDPAddrPort([]byte("bpfvol"), netip.AddrPortFrom(to, 9)); err != nil {
				return err
			}
		}
		return nil
	})
}

// packets is what a pod reads: how many UDP packets the program saw.
func packets(target string) (n int, err error) {
	text, err := os.ReadFile(filepath.Join(target, "json", "flows"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var entry struct {
			Key   struct{ Protocol string }
			Value struct{ Packets int }
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			return 0, fmt.Errorf("json/flows: %s: %w", line, err)
		}
		if entry.Key.Protocol == "UDP" {
			n += entry.Value.Packets
		}
	}
	return n, nil
}

// judge prints what ran. It fails for what failed, for what was skipped without a reason of ours, and for reasons that
// nothing was skipped for.
func judge(t *testing.T, specs types.SpecReports) {
	t.Helper()
	var ran, passed int
	skipped := map[string][]string{} // by the reason why
	used := make([]bool, len(reasons))
	for _, s := range specs {
		name := strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), ": ")
		switch s.State {
		case types.SpecStatePassed:
			ran, passed = ran+1, passed+1
		case types.SpecStateSkipped, types.SpecStatePending:
			i := slices.IndexFunc(reasons, func(r reason) bool { return r.covers(name, s.Failure.Message) })
			if i < 0 {
				t.Errorf("skipped, and nobody has written down why: %s (%s)", name, s.Failure.Message)
				continue
			}
			used[i] = true
			skipped[reasons[i].why] = append(skipped[reasons[i].why], name)
		default:
			ran++
			t.Errorf("%s: %s: %s", s.State, name, s.Failure.Message)
		}
	}
	for i, r := range reasons {
		if !used[i] {
			t.Errorf("a reason to skip what nobody skips: %q (%s)", r.specs, r.says)
		}
	}
	t.Logf("csi-sanity: %d specs, %d run, %d passed, %d skipped", len(specs), ran, passed, len(specs)-ran)
	for _, why := range slices.Sorted(maps.Keys(skipped)) {
		t.Logf("skipped, as %s:\n\t%s", why, strings.Join(skipped[why], "\n\t"))
	}
	if passed < fewest {
		t.Errorf("only %d specs passed, want %d or more", passed, fewest)
	}
}

// fewest are how many specs pass. A later suite may have more, and no release of ours has fewer.
const fewest = 34
