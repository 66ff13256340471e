// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"cmp"
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/bpfvol/bpfvol/internal/node"
)

// NodeGetVolumeHealth says what is wrong with a volume at a path, or at each if none is given; nothing if all is well. CSI
// 1.13 has it as an alpha feature, and so does kubelet 1.37.
func (s *Server) NodeGetVolumeHealth(ctx context.Context, req *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	if !s.opts.VolumeHealth {
		return s.UnimplementedNodeServer.NodeGetVolumeHealth(ctx, req)
	}
	path := req.GetVolumePublishPath()
	if err := checkVolume(req.GetVolumeId(), "volume publish path", cmp.Or(path, "/")); err != nil {
		return nil, err
	}
	health, err := s.opts.Engine.Health(ctx, req.GetVolumeId(), path)
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: &csi.VolumeHealth{VolumeId: req.GetVolumeId(), HealthStatuses: entries(health)}}, nil
}

// entries has one entry for each reason, as the specification wants.
func entries(h node.Health) (all []*csi.VolumeHealth_VolumeHealthEntry) {
	byReason := map[node.Reason]*csi.VolumeHealth_VolumeHealthEntry{}
	for _, p := range h.Problems {
		if e := byReason[p.Reason]; e != nil {
			e.Message = cut(e.Message+"; "+printable(p.Text), maxText)
			continue
		}
		e := &csi.VolumeHealth_VolumeHealthEntry{Status: severity(p.Reason), Reason: string(p.Reason), Message: cut(printable(p.Text), maxText)}
		byReason[p.Reason] = e
		all = append(all, e)
	}
	return all
}

// severity is INACCESSIBLE where a pod cannot read the maps, and DEGRADED where they are no longer fed.
func severity(r node.Reason) csi.VolumeHealthErrorType {
	if r == node.NotMounted || r == node.Unpublished {
		return csi.VolumeHealthErrorType_INACCESSIBLE
	}
	return csi.VolumeHealthErrorType_DEGRADED
}
