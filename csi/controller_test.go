// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"strconv"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// claimed is what external-provisioner asks for a PersistentVolumeClaim.
func claimed(change func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
	req := &csi.CreateVolumeRequest{
		Name:               "pvc-0b3f",
		VolumeCapabilities: []*csi.VolumeCapability{mountCapability(&csi.VolumeCapability_MountVolume{})},
		CapacityRange:      &csi.CapacityRange{RequiredBytes: 1 << 20},
		Parameters:         map[string]string{"image": "ghcr.io/acme/count:v1", "attach": "{program: count, xdp: eth0}"},
	}
	if change != nil {
		change(req)
	}
	return req
}

func TestControllerIsThereWhenAskedFor(t *testing.T) {
	for _, on := range []bool{false, true} {
		r := serve(t, quiet(), Options{Engine: &fakeEngine{}, Controller: on})
		got, err := r.identity().GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		says := len(got.GetCapabilities()) == 1 && got.GetCapabilities()[0].GetService().GetType() == csi.PluginCapability_Service_CONTROLLER_SERVICE
		_, err = csi.NewControllerClient(r.conn).CreateVolume(t.Context(), claimed(nil))
		if answers := status.Code(err) != codes.Unimplemented; says != on || answers != on {
			t.Errorf("controller %t: the plugin's capabilities are %v, CreateVolume says %v", on, got.GetCapabilities(), err)
		}
	}
}

func TestCreateVolume(t *testing.T) {
	c := newController()
	want := &csi.Volume{
		VolumeId: "bpfvol-pvc-0b3f", CapacityBytes: 1 << 20,
		VolumeContext: map[string]string{"image": "ghcr.io/acme/count:v1", "attach": "{program: count, xdp: eth0}"},
	}
	for range 2 { // as often as like
		got, err := c.CreateVolume(t.Context(), claimed(nil))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.String(), got.GetVolume().String()); diff != "" {
			t.Error(diff)
		}
	}
	for _, mode := range []csi.VolumeCapability_AccessMode_Mode{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	} {
		if _, err := c.CreateVolume(t.Context(), claimed(func(req *csi.CreateVolumeRequest) { req.VolumeCapabilities[0].AccessMode.Mode = mode })); err != nil {
			t.Errorf("%v: %v", mode, err)
		}
	}
	for _, r := range []struct {
		what   string
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
		says   string
	}{
		{"no name", func(req *csi.CreateVolumeRequest) { req.Name = "" }, codes.InvalidArgument, `volume name: missing`},
		{"no capabilities", func(req *csi.CreateVolumeRequest) { req.VolumeCapabilities = nil }, codes.InvalidArgument, `volume capabilities: missing`},
		{"block", func(req *csi.CreateVolumeRequest) {
			req.VolumeCapabilities[0].AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		}, codes.InvalidArgument, `volumeMode: Block: a bytecode volume is a directory; use Filesystem`},
		{"mount options of the class", func(req *csi.CreateVolumeRequest) { req.VolumeCapabilities[0].GetMount().MountFlags = []string{"ro"} },
			codes.InvalidArgument, `mountOptions: a bytecode volume takes none but context=; leave the others out`},
		{"a snapshot", func(req *csi.CreateVolumeRequest) { req.VolumeContentSource = &csi.VolumeContentSource{} },
			codes.InvalidArgument, `dataSource: a bytecode volume has no data to copy; leave it out`},
		{"an attributes class", func(req *csi.CreateVolumeRequest) { req.MutableParameters = map[string]string{"a": "b"} },
			codes.InvalidArgument, `volumeAttributesClassName: the attributes of a bytecode volume cannot change; leave it out`},
		{"no possible capacity", func(req *csi.CreateVolumeRequest) { req.CapacityRange.LimitBytes = 1 },
			codes.InvalidArgument, `capacity range: from 1048576 to 1 bytes: no capacity is in it`},
		{"unknown parameter", func(req *csi.CreateVolumeRequest) { req.Parameters["imagee"] = "x" },
			codes.InvalidArgument, `parameters: unknown key "imagee"; did you mean "image"?`},
		{"bad parameter", func(req *csi.CreateVolumeRequest) { req.Parameters["pullPolicy"] = "Sometimes" },
			codes.InvalidArgument, `parameters: pullPolicy: unknown value "Sometimes"; known are Always, IfNotPresent, Never`},
		{"pod information", func(req *csi.CreateVolumeRequest) { req.Parameters["csi.storage.k8s.io/ephemeral"] = "false" },
			codes.InvalidArgument, `parameters: key "csi.storage.k8s.io/ephemeral" is Kubernetes' own; remove it`},
		{"the same name and another class", func(req *csi.CreateVolumeRequest) { delete(req.Parameters, "attach") },
			codes.AlreadyExists, `volume: a volume of this name exists with other parameters; delete it first`},
		{"the same name and more capacity", func(req *csi.CreateVolumeRequest) { req.CapacityRange.RequiredBytes = 1 << 30 },
			codes.AlreadyExists, `volume: a volume of this name exists with other capacity; delete it first`},
	} {
		t.Run(r.what, func(t *testing.T) {
			_, err := c.CreateVolume(t.Context(), claimed(r.change))
			if got := status.Convert(toStatus(err)); got.Code() != r.code || got.Message() != r.says {
				t.Errorf("got  %v: %s\nwant %v: %s", got.Code(), got.Message(), r.code, r.says)
			}
		})
	}
}

// A volume is nothing that could be left: whatever id a PersistentVolume has, deleting it succeeds, and its name is free.
func TestDeleteVolumeAlwaysSucceeds(t *testing.T) {
	c := newController()
	if _, err := c.CreateVolume(t.Context(), claimed(nil)); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"bpfvol-pvc-0b3f", "bpfvol-pvc-0b3f", "never heard of", strings.Repeat("x", 5000)} {
		if _, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Errorf("%.20s: %v", id, err)
		}
	}
	if _, err := c.CreateVolume(t.Context(), claimed(func(req *csi.CreateVolumeRequest) { delete(req.Parameters, "attach") })); err != nil {
		t.Errorf("after it was deleted: %v", err)
	}
	if _, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{}); CodeOf(err) != codes.InvalidArgument {
		t.Errorf("without an id: %v", err)
	}
}

func TestValidateVolumeCapabilities(t *testing.T) {
	c := newController()
	ask := func(id string, capabilities ...*csi.VolumeCapability) (*csi.ValidateVolumeCapabilitiesResponse, error) {
		return c.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: capabilities})
	}
	mount := mountCapability(&csi.VolumeCapability_MountVolume{})
	block := &csi.VolumeCapability{AccessMode: mount.AccessMode, AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}}
	if got, err := ask("bpfvol-pvc-0b3f", mount); err != nil || len(got.GetConfirmed().GetVolumeCapabilities()) != 1 {
		t.Errorf("a directory: %v, %v", got, err)
	}
	if got, err := ask("bpfvol-pvc-0b3f", mount, block); err != nil || got.GetConfirmed() != nil || got.GetMessage() != "volumeMode: Block: a bytecode volume is a directory; use Filesystem" {
		t.Errorf("a block device: %v, %v", got, err)
	}
	if _, err := ask("vol-1", mount); CodeOf(err) != codes.NotFound {
		t.Errorf("an id of somebody else's: %v", err)
	}
	if _, err := ask("bpfvol-pvc-0b3f"); CodeOf(err) != codes.InvalidArgument {
		t.Errorf("no capability: %v", err)
	}
}

// A cluster that makes volumes for years does not fill the memory of its controller.
func TestControllerForgets(t *testing.T) {
	c := newController()
	for i := range maxRemembered + 10 {
		if _, err := c.CreateVolume(t.Context(), claimed(func(req *csi.CreateVolumeRequest) { req.Name += strconv.Itoa(i) })); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(c.made); n > maxRemembered {
		t.Errorf("it remembers %d volumes, want at most %d", n, maxRemembered)
	}
}
