// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
)

func TestIdentity(t *testing.T) {
	var recovered atomic.Bool
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}, Ready: recovered.Load})

	info, err := r.identity().GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "csi.bpfvol.io" || info.GetVendorVersion() != "v1.2.3" {
		t.Errorf("GetPluginInfo = %v, %v", info, err)
	}
	caps, err := r.identity().GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || len(caps.GetCapabilities()) != 0 {
		t.Errorf("GetPluginCapabilities = %v, %v; want none", caps, err)
	}
	for _, want := range []bool{false, true} {
		recovered.Store(want)
		probe, err := r.identity().Probe(t.Context(), &csi.ProbeRequest{})
		if err != nil || probe.GetReady().GetValue() != want {
			t.Errorf("Probe = %v, %v; want %v", probe, err, want)
		}
	}
}

func TestNodeInfo(t *testing.T) {
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}})
	info, err := r.node().NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	if err != nil || info.GetNodeId() != "node-1" || info.GetMaxVolumesPerNode() != 0 {
		t.Errorf("NodeGetInfo = %v, %v", info, err)
	}
	caps, err := r.node().NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range caps.GetCapabilities() {
		got = append(got, c.GetRpc().GetType().String())
	}
	if diff := cmp.Diff([]string{"VOLUME_MOUNT_GROUP", "GET_VOLUME_STATS"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestNotReadyIsNotFinal(t *testing.T) {
	engine := &fakeEngine{publish: func(context.Context, node.Request) error { return errors.New("called") }}
	r := serve(t, quiet(), Options{Engine: engine, Ready: func() bool { return false }})
	_, err := r.node().NodePublishVolume(t.Context(), validRequest())
	if got := status.Code(err); got != codes.Unavailable {
		t.Errorf("publish: %v, want Unavailable", err)
	}
	_, err = r.node().NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: testTarget})
	if got := status.Code(err); got != codes.Unavailable {
		t.Errorf("unpublish: %v, want Unavailable", err)
	}
}

func TestErrorsArriveAsCodeAndText(t *testing.T) {
	engine := &fakeEngine{publish: func(context.Context, node.Request) error {
		return fmt.Errorf("image %q: %w", "x\n"+strings.Repeat("y", 1000), image.ErrNotFound)
	}}
	r := serve(t, quiet(), Options{Engine: engine})
	_, err := r.node().NodePublishVolume(t.Context(), validRequest())
	s := status.Convert(err)
	if s.Code() != codes.NotFound || !strings.HasPrefix(s.Message(), `image "x\nyyy`) || len(s.Message()) > maxText || len(s.Details()) != 0 {
		t.Errorf("got %v, details %v", err, s.Details())
	}
}

func TestMethodsWeDoNotHaveAreUnimplemented(t *testing.T) {
	r := serve(t, quiet(), Options{Engine: &fakeEngine{}})
	_, err := r.node().NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{})
	if s := status.Convert(err); s.Code() != codes.Unimplemented || s.Message() != "method NodeStageVolume not implemented" {
		t.Errorf("got %v", err)
	}
}

func TestVolumeStats(t *testing.T) {
	engine := &fakeEngine{stats: func(id, target string) (int, error) {
		if id != "v" || target != testTarget {
			return 0, node.ErrUnknownVolume
		}
		return 7, nil
	}}
	r := serve(t, quiet(), Options{Engine: engine})
	resp, err := r.node().NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: "v", VolumePath: testTarget})
	if err != nil || len(resp.GetUsage()) != 1 {
		t.Fatalf("got %v, %v; want one usage", resp, err)
	}
	if u := resp.GetUsage()[0]; u.GetUnit() != csi.VolumeUsage_INODES || u.GetUsed() != 7 {
		t.Errorf("got %v, want 7 inodes", u)
	}
	for _, c := range []struct {
		id, path string
		want     codes.Code
	}{
		{"", testTarget, codes.InvalidArgument},
		{"v", "", codes.InvalidArgument},
		{"other", testTarget, codes.NotFound},
		{"v", testTarget + "2", codes.NotFound},
	} {
		_, err := r.node().NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: c.id, VolumePath: c.path})
		if got := status.Code(err); got != c.want {
			t.Errorf("id %q path %q: %v, want %v", c.id, c.path, err, c.want)
		}
	}
}

func TestUnpublish(t *testing.T) {
	var got []string
	engine := &fakeEngine{unpublish: func(_ context.Context, id, target string) error {
		got = append(got, id+" "+target)
		return nil
	}}
	r := serve(t, quiet(), Options{Engine: engine})
	for _, c := range []struct {
		id, target string
		want       codes.Code
	}{
		{"", testTarget, codes.InvalidArgument},
		{"v", "", codes.InvalidArgument},
		{"v", testTarget, codes.OK},
	} {
		_, err := r.node().NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: c.id, TargetPath: c.target})
		if code := status.Code(err); code != c.want {
			t.Errorf("id %q target %q: %v, want %v", c.id, c.target, err, c.want)
		}
	}
	if diff := cmp.Diff([]string{"v " + testTarget}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPublishBudget(t *testing.T) {
	var left time.Duration
	engine := &fakeEngine{publish: func(ctx context.Context, _ node.Request) error {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return nil
	}}
	r := serve(t, quiet(), Options{Engine: engine})
	for _, c := range []struct {
		name             string
		caller, min, max time.Duration
	}{
		{"kubelet's two minutes leave time to answer", 2 * time.Minute, 100 * time.Second, 110 * time.Second},
		{"a shorter deadline holds", 20 * time.Second, 10 * time.Second, 20 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), c.caller)
			defer cancel()
			if _, err := r.node().NodePublishVolume(ctx, validRequest()); err != nil {
				t.Fatal(err)
			}
			if left < c.min || left > c.max {
				t.Errorf("the engine had %v, want %v to %v", left, c.min, c.max)
			}
		})
	}
}

func TestNewRefusesNames(t *testing.T) {
	for _, o := range []Options{
		{Driver: "", NodeID: "n"},
		{Driver: "csi.bpfvol.io1", NodeID: "n"},
		{Driver: strings.Repeat("x", 64), NodeID: "n"},
		{Driver: "csi/bpfvol", NodeID: "n"},
		{Driver: "csi.bpfvol.io"},
		{Driver: "csi.bpfvol.io", NodeID: strings.Repeat("n", 257)},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("driver %q, node %q were taken", o.Driver, o.NodeID)
		}
	}
}
