// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/internal/panics"
)

// errNotReady answers calls that come before recovery is done.
var errNotReady = errors.New("node plugin: still recovering after its start; the call will be tried again")

// undoTimeout bounds the undo of a publish that panicked, which goes on when the caller has given up.
const undoTimeout = 30 * time.Second

// nodeCapabilities are what kubelet may ask of this node. With VOLUME_MOUNT_GROUP it passes a pod's fsGroup to us;
// without, it would try to chown what is mounted read-only.
var nodeCapabilities = []csi.NodeServiceCapability_RPC_Type{
	csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
	csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
}

// NodeGetInfo says which node this is. The number of volumes is not limited.
func (s *Server) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: s.opts.NodeID}, nil
}

// NodeGetCapabilities lists nodeCapabilities, and GET_VOLUME_HEALTH where that is asked for.
func (s *Server) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	capabilities := nodeCapabilities
	if s.opts.VolumeHealth {
		capabilities = append(slices.Clone(capabilities), csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH)
	}
	for _, c := range capabilities {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return resp, nil
}

// NodePublishVolume runs a volume and mounts it on its target.
func (s *Server) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	publish, err := publishRequest(req, s.opts.PodsDir)
	if err != nil {
		return nil, err
	}
	if !s.ready() {
		return nil, errNotReady
	}
	ctx, cancel := context.WithTimeout(ctx, callBudget)
	defer cancel()
	if err := s.publish(ctx, publish); err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// publish undoes a publish that panicked: the code of a panic is final, and after a final code kubelet forgets the
// volume and never unpublishes it.
func (s *Server) publish(ctx context.Context, req node.Request) error {
	err := panics.Catch(func() error { return s.opts.Engine.Publish(ctx, req) })
	if !errors.As(err, new(*panics.Error)) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	undo := panics.Catch(func() error { return s.opts.Engine.Unpublish(ctx, req.VolumeID, req.Target) })
	if undo != nil {
		return fmt.Errorf("%w: %w; after: %w", node.ErrTeardown, undo, err)
	}
	return err
}

// NodeUnpublishVolume takes a volume away. A volume that is not there is a success.
func (s *Server) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := checkVolume(req.GetVolumeId(), "target path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	if !s.ready() {
		return nil, errNotReady
	}
	ctx, cancel := context.WithTimeout(ctx, callBudget)
	defer cancel()
	if err := s.opts.Engine.Unpublish(ctx, req.GetVolumeId(), req.GetTargetPath()); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats counts the files that a volume shows, as inodes. kubelet asks for every volume once a minute.
func (s *Server) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if err := checkVolume(req.GetVolumeId(), "volume path", req.GetVolumePath()); err != nil {
		return nil, err
	}
	pins, err := s.opts.Engine.Stats(ctx, req.GetVolumeId(), req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{
		Unit:  csi.VolumeUsage_INODES,
		Used:  int64(pins),
		Total: int64(pins),
	}}}, nil
}
