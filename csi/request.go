// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/bpfvol/bpfvol/internal/claim"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/verify"
)

// kubelet's own keys in a volume context (pkg/volume/csi/csi_util.go, getPodInfoAttrs). kubelet merges them over the
// user's, so where podInfoOnMount is set a user can't write them.
const (
	reservedPrefix = claim.ReservedPrefix

	keyPodName        = reservedPrefix + "pod.name"
	keyPodNamespace   = reservedPrefix + "pod.namespace"
	keyPodUID         = reservedPrefix + "pod.uid"
	keyServiceAccount = reservedPrefix + "serviceAccount.name"

	// keyEphemeral says whether the volume is written in the pod ("true") or is a PersistentVolume ("false").
	keyEphemeral = reservedPrefix + "ephemeral"
)

const (
	// maxPath is the longest path that Linux takes (PATH_MAX less the NUL). The specification leaves it to the system.
	maxPath = 4095
	// maxGroup is the largest group id. 4294967295 means "no change" to chown(2).
	maxGroup = 1<<32 - 2
)

// requestError says which part of a request is wrong, in words of a pod's specification where it has some.
type requestError struct{ field, msg string }

func (e *requestError) Error() string { return e.field + ": " + e.msg }

// publishRequest checks a request in the order that CSI's conformance suite expects (id, target, capability, then the
// rest) and splits its volume context into who asks and what for.
func publishRequest(req *csi.NodePublishVolumeRequest, podsDir string) (node.Request, error) {
	if err := checkVolume(req.GetVolumeId(), "target path", req.GetTargetPath()); err != nil {
		return node.Request{}, err
	}
	group, label, err := capability(req.GetVolumeCapability())
	if err != nil {
		return node.Request{}, err
	}
	pod, attributes := split(req.GetVolumeContext())
	if err := checkPod(pod, req.GetTargetPath(), podsDir); err != nil {
		return node.Request{}, err
	}
	logins, err := keyring(req.GetSecrets())
	if err != nil {
		return node.Request{}, err
	}
	persistent, err := persistent(req.GetVolumeContext())
	if err != nil {
		return node.Request{}, err
	}
	return node.Request{
		VolumeID:   req.GetVolumeId(),
		Target:     req.GetTargetPath(),
		Attributes: attributes,
		Subject:    verify.Subject{Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount, Persistent: persistent},
		Pod:        pod,
		Group:      group,
		Context:    label,
		ReadOnly:   req.GetReadonly() || readersOnly(req.GetVolumeCapability()),
		Keyring:    logins,
	}, nil
}

// checkVolume checks what every call about a volume has. What a path may be is package podfs's to judge.
func checkVolume(id, pathField, path string) error {
	switch {
	case id == "":
		return &requestError{"volume id", "missing"}
	case len(id) > claim.MaxID:
		return &requestError{"volume id", fmt.Sprintf("%d bytes: at most %d are allowed", len(id), claim.MaxID)}
	case path == "":
		return &requestError{pathField, "missing"}
	case len(path) > maxPath:
		return &requestError{pathField, fmt.Sprintf("%d bytes: at most %d are allowed", len(path), maxPath)}
	}
	return nil
}

// capability refuses what a bytecode volume is not, and returns the group whose the volume is, nil for none, and the
// SELinux context of its files.
func capability(c *csi.VolumeCapability) (group *int, label string, err error) {
	mount := c.GetMount()
	switch {
	case c == nil:
		return nil, "", &requestError{"volume capability", "missing"}
	case c.GetBlock() != nil:
		return nil, "", &requestError{"volumeMode", "Block: a bytecode volume is a directory; use Filesystem"}
	case mount == nil:
		return nil, "", &requestError{"volume capability", "access type missing; it must be mount"}
	case c.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_UNKNOWN:
		return nil, "", &requestError{"volume capability", "access mode missing"}
	case mount.GetFsType() != "":
		return nil, "", &requestError{"fsType", fmt.Sprintf("%.32q: a bytecode volume has no file system type; leave it out", mount.GetFsType())}
	}
	if label, err = securityContext(mount.GetMountFlags()); err != nil {
		return nil, "", err
	}
	if mount.GetVolumeMountGroup() == "" {
		return nil, label, nil
	}
	id, err := strconv.ParseUint(mount.GetVolumeMountGroup(), 10, 32)
	if err != nil || id > maxGroup {
		return nil, "", &requestError{"volume mount group", fmt.Sprintf("%.32q: must be a group number from 0 to %d", mount.GetVolumeMountGroup(), uint32(maxGroup))}
	}
	n := int(id)
	return &n, label, nil
}

// readersOnly says whether a PersistentVolume is one that pods may only read, as its access modes have it.
func readersOnly(c *csi.VolumeCapability) bool {
	switch c.GetAccessMode().GetMode() {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY, csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
		return true
	}
	return false
}

// split separates kubelet's keys from the user's. Of kubelet's, those that tell nothing we need are dropped.
func split(context map[string]string) (node.Pod, map[string]string) {
	attributes := make(map[string]string, len(context))
	for key, value := range context {
		if !strings.HasPrefix(key, reservedPrefix) {
			attributes[key] = value
		}
	}
	return podOf(context), attributes
}

func podOf(context map[string]string) node.Pod {
	return node.Pod{
		Namespace:      context[keyPodNamespace],
		Name:           context[keyPodName],
		UID:            context[keyPodUID],
		ServiceAccount: context[keyServiceAccount],
	}
}

// objectName is what names of namespaces, pods and service accounts look like. Policies join two of them by a slash.
var objectName = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$`)

const maxObjectName = 253 // a DNS subdomain, RFC 1123

// checkPod makes sure that kubelet said who asks, and not the user.
func checkPod(pod node.Pod, target, podsDir string) error {
	for _, field := range []struct{ key, value string }{
		{keyPodNamespace, pod.Namespace},
		{keyPodName, pod.Name},
		{keyServiceAccount, pod.ServiceAccount},
	} {
		switch {
		case field.value == "":
			return &requestError{field.key, "missing; set podInfoOnMount: true in the CSIDriver object"}
		case len(field.value) > maxObjectName || !objectName.MatchString(field.value):
			return &requestError{field.key, fmt.Sprintf("%.64q: is no name of a Kubernetes object", field.value)}
		}
	}
	if podsDir == "" {
		return nil
	}
	inside, err := filepath.Rel(podsDir, target)
	if err != nil || pod.UID == "" || !strings.HasPrefix(inside, pod.UID+"/") {
		return &requestError{keyPodUID, "is not the pod whose directory the target path is in; set podInfoOnMount: true in the CSIDriver object"}
	}
	return nil
}

// persistent says whether a PersistentVolume is mounted. kubelet always says so where it says who the pod is; without its
// word a pod's author could claim what an admin alone can make.
func persistent(context map[string]string) (bool, error) {
	switch value := context[keyEphemeral]; value {
	case "true":
		return false, nil
	case "false":
		return true, nil
	case "":
		return false, &requestError{keyEphemeral, "missing; set podInfoOnMount: true in the CSIDriver object"}
	default:
		return false, &requestError{keyEphemeral, fmt.Sprintf("%.32q: is not a word of kubelet's; set podInfoOnMount: true in the CSIDriver object", value)}
	}
}
