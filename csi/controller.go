// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/bpfvol/bpfvol/internal/claim"
)

var (
	// errOtherVolume means that the name of a volume was given to another one.
	errOtherVolume = errors.New("a volume of this name exists with other")
	// errNoVolume means that no volume has this id.
	errNoVolume = errors.New("no such volume")
)

// maxRemembered bounds what a controller remembers, in volumes.
const maxRemembered = 10_000

// controller is the Controller service: what Kubernetes asks where a PersistentVolumeClaim wants a volume of a
// StorageClass. A bytecode volume has no data and belongs to no node, so there is nothing to make or delete, and any
// node can mount it, as many at once as like.
//
// It keeps nothing on disk: package claim gives a name the same id each time. What it remembers is there to tell a caller
// that mixes two volumes up, as the specification wants; a controller that has restarted takes his word.
type controller struct {
	csi.UnimplementedControllerServer

	mu   sync.Mutex
	made map[string]made // by id
}

type made struct {
	attributes map[string]string
	capacity   int64
}

func newController() *controller { return &controller{made: map[string]made{}} }

// ControllerGetCapabilities says that volumes can be created and deleted.
func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{{
		Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{
			Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		}},
	}}}, nil
}

// CreateVolume copies the parameters of a class to the attributes of a volume, if a node could parse them.
func (c *controller) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if req.GetName() == "" {
		return nil, &requestError{"volume name", "missing"}
	}
	if err := capabilities(req.GetVolumeCapabilities()); err != nil {
		return nil, err
	}
	if err := checkCapacity(req.GetCapacityRange()); err != nil {
		return nil, err
	}
	v, err := claim.New(claim.Request{
		Name: req.GetName(), Parameters: req.GetParameters(),
		DataSource: req.GetVolumeContentSource() != nil, AttributesClass: len(req.GetMutableParameters()) > 0,
	})
	if err != nil {
		return nil, err
	}
	capacity, err := c.remember(v, req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: v.ID, VolumeContext: v.Attributes, CapacityBytes: capacity}}, nil
}

// remember returns the capacity of a volume, which is the one that was asked for first: it means nothing.
func (c *controller) remember(v claim.Volume, want *csi.CapacityRange) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, known := c.made[v.ID]
	if !known {
		for id := range c.made {
			if len(c.made) < maxRemembered {
				break
			}
			delete(c.made, id)
		}
		m = made{v.Attributes, want.GetRequiredBytes()}
		c.made[v.ID] = m
		return m.capacity, nil
	}
	switch limit := want.GetLimitBytes(); {
	case !maps.Equal(m.attributes, v.Attributes):
		return 0, fmt.Errorf("volume: %w parameters; delete it first", errOtherVolume)
	case m.capacity < want.GetRequiredBytes(), limit > 0 && m.capacity > limit:
		return 0, fmt.Errorf("volume: %w capacity; delete it first", errOtherVolume)
	}
	return m.capacity, nil
}

// DeleteVolume forgets a volume. One that is unknown is a success.
func (c *controller) DeleteVolume(_ context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, &requestError{"volume id", "missing"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.made, req.GetVolumeId())
	return &csi.DeleteVolumeResponse{}, nil
}

// ValidateVolumeCapabilities says whether a volume can be used so.
func (c *controller) ValidateVolumeCapabilities(_ context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	id, want := req.GetVolumeId(), req.GetVolumeCapabilities()
	switch {
	case id == "":
		return nil, &requestError{"volume id", "missing"}
	case len(want) == 0:
		return nil, &requestError{"volume capabilities", "missing"}
	case !claim.IsID(id):
		return nil, fmt.Errorf("volume: %w: CreateVolume never returned this id", errNoVolume)
	}
	if err := capabilities(want); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: message(err)}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: req.GetVolumeContext(), VolumeCapabilities: want, Parameters: req.GetParameters(),
	}}, nil
}

// capabilities checks all that a volume is to be capable of, as NodePublishVolume will check one of them.
func capabilities(all []*csi.VolumeCapability) error {
	if len(all) == 0 {
		return &requestError{"volume capabilities", "missing"}
	}
	for _, c := range all {
		if _, _, err := capability(c); err != nil {
			return err
		}
	}
	return nil
}

func checkCapacity(c *csi.CapacityRange) error {
	required, limit := c.GetRequiredBytes(), c.GetLimitBytes()
	if required < 0 || limit < 0 || limit > 0 && limit < required {
		return &requestError{"capacity range", fmt.Sprintf("from %d to %d bytes: no capacity is in it", required, limit)}
	}
	return nil
}
