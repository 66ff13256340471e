// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

const (
	redacted = "***"
	// maxLogged bounds each attribute in the log: they are as long as a user likes.
	maxLogged = 256
)

// shown is a request as it is logged. A type of its own, so that no code can log a request and forget what it holds:
// secrets, service account tokens, mount flags.
func shown(req any) any {
	switch r := req.(type) {
	case *csi.NodePublishVolumeRequest:
		return loggedPublish{req: r}
	case *csi.NodeUnpublishVolumeRequest:
		return map[string]string{"target": r.GetTargetPath()}
	case *csi.NodeGetVolumeStatsRequest:
		return map[string]string{"path": r.GetVolumePath()}
	case *csi.NodeGetVolumeHealthRequest:
		return map[string]string{"path": r.GetVolumePublishPath()}
	case *csi.CreateVolumeRequest:
		return loggedCreate{req: r}
	}
	return fmt.Sprintf("%T", req)
}

// loggedPublish implements logr.Marshaler. The request is no embedded field: that would bring its String method along,
// which prints everything and which klog prefers.
type loggedPublish struct{ req *csi.NodePublishVolumeRequest }

func (l loggedPublish) MarshalLog() any {
	attributes := make(map[string]string, len(l.req.GetVolumeContext()))
	for key, value := range l.req.GetVolumeContext() {
		switch key {
		case keyPodName, keyPodNamespace, keyPodUID, keyServiceAccount, keyEphemeral:
		default:
			if strings.HasPrefix(key, reservedPrefix) {
				value = redacted // serviceAccount.tokens, and whatever comes later
			}
		}
		attributes[loggable(key)] = loggable(value)
	}
	return map[string]any{
		"target":     l.req.GetTargetPath(),
		"attributes": attributes,
		"group":      l.req.GetVolumeCapability().GetMount().GetVolumeMountGroup(),
		"readOnly":   l.req.GetReadonly(),
		"secrets":    len(l.req.GetSecrets()),
	}
}

// loggedCreate is loggedPublish for a volume that is not a pod's yet.
type loggedCreate struct{ req *csi.CreateVolumeRequest }

func (l loggedCreate) MarshalLog() any {
	parameters := make(map[string]string, len(l.req.GetParameters()))
	for key, value := range l.req.GetParameters() {
		parameters[loggable(key)] = loggable(value)
	}
	return map[string]any{"name": loggable(l.req.GetName()), "parameters": parameters, "secrets": len(l.req.GetSecrets())}
}

func loggable(text string) string { return cut(strings.ToValidUTF8(text, "?"), maxLogged) }
