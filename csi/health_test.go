// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bpfvol/bpfvol/internal/node"
)

func TestVolumeHealthSaysWhatIsWrongOnceForEachReason(t *testing.T) {
	engine := &fakeEngine{health: func(id, target string) (node.Health, error) {
		switch {
		case id != "v" || target != "" && target != testTarget:
			return node.Health{}, node.ErrUnknownVolume
		case target == "":
			return node.Health{Healthy: true}, nil
		}
		return node.Health{Problems: []node.Problem{
			{Reason: node.LinkSevered, Text: "xdp eth0: nothing runs"},
			{Reason: node.NotMounted, Text: "it is not mounted"},
			{Reason: node.LinkSevered, Text: "tc eth0:\nnothing runs"},
		}}, nil
	}}
	r := serve(t, quiet(), Options{Engine: engine, VolumeHealth: true})
	resp, err := r.node().NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: "v", VolumePublishPath: testTarget})
	if err != nil || resp.GetVolumeHealth().GetVolumeId() != "v" {
		t.Fatal(resp, err)
	}
	var got []string
	for _, e := range resp.GetVolumeHealth().GetHealthStatuses() {
		got = append(got, e.GetStatus().String()+" "+e.GetReason()+" "+e.GetMessage())
	}
	want := []string{"DEGRADED LinkSevered xdp eth0: nothing runs; tc eth0: nothing runs", "INACCESSIBLE NotMounted it is not mounted"}
	if !slices.Equal(got, want) {
		t.Errorf("health is %q, want %q", got, want)
	}
	for _, c := range []struct {
		id, path string
		want     codes.Code
	}{
		{"", "", codes.InvalidArgument},
		{"other", "", codes.NotFound},
		{"v", testTarget + "2", codes.NotFound},
		{"v", "/" + strings.Repeat("x", maxPath), codes.InvalidArgument},
		{"v", "", codes.OK},
	} {
		resp, err := r.node().NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: c.id, VolumePublishPath: c.path})
		if got := status.Code(err); got != c.want || len(resp.GetVolumeHealth().GetHealthStatuses()) > 0 {
			t.Errorf("id %q path %q: %v, %v, want %v", c.id, c.path, resp, err, c.want)
		}
	}
}

// csi-sanity fails drivers for capabilities that it does not know.
func TestVolumeHealthIsOffUnlessAskedFor(t *testing.T) {
	for _, on := range []bool{false, true} {
		r := serve(t, quiet(), Options{Engine: &fakeEngine{}, VolumeHealth: on})
		caps, err := r.node().NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(caps.GetCapabilities(), func(c *csi.NodeServiceCapability) bool {
			return c.GetRpc().GetType() == csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH
		})
		if got != on {
			t.Errorf("capability is %v, want %v", got, on)
		}
		_, err = r.node().NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: "v"})
		if got := status.Code(err) == codes.Unimplemented; got == on {
			t.Errorf("with the flag %v: %v", on, err)
		}
	}
}
