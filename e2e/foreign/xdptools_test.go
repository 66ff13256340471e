// SPDX-License-Identifier: Apache-2.0

package foreign_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// statsRecord is struct xdp_stats_record of xdp-tools (headers/xdp/xdp_stats_kern_user.h).
type statsRecord struct {
	Packets uint64 `json:"rx_packets"`
	Bytes   uint64 `json:"rx_bytes"`
}

// xdp-filter counts packets by verdict. Its maps ask to be pinned by name, which libbpf would do for all the machine.
func TestXDPFilterCountsWhatWasSent(t *testing.T) {
	const packets, size = 7, 60 // SendUDP's frames
	for _, c := range []struct {
		program string
		verdict string // of packets that no rule names, as key of xdp_stats_map
	}{
		{"xdpfilt_alw_all", "2"}, // allowed unless denied: XDP_PASS,
		{"xdpfilt_dny_ip", "1"},  // denied unless allowed: XDP_DROP,
	} {
		t.Run(c.program, func(t *testing.T) {
			object := xdpTools(t, c.program+".o")
			node, peer := bpftest.Pair(t)
			machine := entries(t, "/sys/fs/bpf")
			n := nodetest.Start(t, nodetest.Options{NetNS: node})
			v := n.Publish(t, map[string]string{
				"image":  n.Signed(t, strings.ReplaceAll(c.program, "_", "-"), object),
				"attach": "{program: " + c.program + ", xdp: {interface: veth0}}",
			})
			peer.SendUDP(t, node.Addr, packets)

			want := statsRecord{packets, packets * size}
			got := map[string]statsRecord{}
			for _, e := range v.Entries(t, "xdp_stats_map") {
				var perCPU []statsRecord
				if !v.Value(t, "xdp_stats_map", string(e.Key), &perCPU) {
					t.Fatalf("key %s is gone", e.Key)
				}
				if s := sum(perCPU); s != (statsRecord{}) {
					got[string(e.Key)] = s
				}
			}
			if diff := cmp.Diff(map[string]statsRecord{c.verdict: want}, got); diff != "" {
				t.Errorf("json/xdp_stats_map (-want +got):\n%s", diff)
			}
			if got := pinned(t, filepath.Join(v.Target, "maps", "xdp_stats_map"), c.verdict); got != want {
				t.Errorf("maps/xdp_stats_map at %s holds %+v, want %+v", c.verdict, got, want)
			}

			// What asks to be pinned by name is this volume's all the same.
			if got := entries(t, "/sys/fs/bpf"); !slices.Equal(got, machine) {
				t.Errorf("/sys/fs/bpf holds %v, before it was %v", got, machine)
			}
			if got, want := entries(t, n.BPFFSDir()), []string{"maps.debug", "points", "progs.debug", "volumes"}; !slices.Equal(got, want) {
				t.Errorf("the daemon's bpffs holds %v, want %v", got, want)
			}
		})
	}
}

func pinned(t *testing.T, path, key string) statsRecord {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var perCPU []statsRecord
	if err := m.Lookup(uint32(key[0]-'0'), &perCPU); err != nil {
		t.Fatal(err)
	}
	return sum(perCPU)
}

func sum(perCPU []statsRecord) (total statsRecord) {
	for _, r := range perCPU {
		total.Packets += r.Packets
		total.Bytes += r.Bytes
	}
	return total
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range found {
		names = append(names, e.Name())
	}
	return names
}
