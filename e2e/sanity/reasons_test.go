// SPDX-License-Identifier: Apache-2.0

package sanity_test

import "strings"

// reason is why specs are skipped.
type reason struct {
	specs string // how the name begins
	says  string // what the suite says, in part; empty: it says nothing
	why   string
}

const (
	noData     = "a bytecode volume has no data that could be kept, copied, grown or counted"
	noAttach   = "a bytecode volume is attached to no node (attachRequired: false in deploy/csidriver.yaml)"
	noStage    = "a volume's programs run where the first pod mounts it, so there is nothing to stage"
	noState    = "the controller keeps no list of volumes: PersistentVolumes are that list"
	noChange   = "an image and what it attaches to cannot change under a running pod: the class is made anew"
	accessMode = "access modes are kubelet's and the scheduler's to keep; any number of pods share the programs of a volume"
	noBackend  = "there is no storage behind a node's volumes whose health could be another than theirs"
	theSuite   = "the suite itself has it switched off (csi-test issue 223)"
)

// reasons are all there are. A spec that is skipped for none of them fails the test, and so does a reason for nothing.
var reasons = []reason{
	{"Controller Service [Controller Server]: GetCapacity: ", "GetCapacity not supported", noData},
	{"Controller Service [Controller Server]: ListVolumes: pagination should detect", "", theSuite},
	{"Controller Service [Controller Server]: ListVolumes: ", "ListVolumes not supported", noState},
	{"Controller Service [Controller Server]: CreateVolume: ", "Snapshot not supported", noData},
	{"Controller Service [Controller Server]: CreateVolume: ", "Volume Cloning not supported", noData},
	{"Controller Service [Controller Server]: CreateVolume: ", "Modify volume not supported", noChange},
	{"Controller Service [Controller Server]: CreateVolume: ", "Modify Volume not supported", noChange},
	{"Controller Service [Controller Server]: ControllerPublishVolume: ", "ControllerPublishVolume not supported", noAttach},
	{"Controller Service [Controller Server]: ControllerUnpublishVolume: ", "ControllerUnpublishVolume not supported", noAttach},
	{"Controller Service [Controller Server]: volume lifecycle: ", "Controller Publish, UnpublishVolume not supported", noAttach},
	{"CreateSnapshot [Controller Server]: ", "CreateSnapshot not supported", noData},
	{"DeleteSnapshot [Controller Server]: ", "DeleteSnapshot not supported", noData},
	{"ListSnapshots [Controller Server]: ", "ListSnapshots not supported", noData},
	{"GetSnapshot [Controller Server]: ", "GetSnapshot not supported", noData},
	{"GroupController Service [GroupController", "GroupControllerService not supported", noData},
	{"ExpandVolume [Controller Server]: ", "ControllerExpandVolume not supported", noData},
	{"Node Service: NodeExpandVolume: ", "NodeExpandVolume not supported", noData},
	{"ModifyVolume [Controller Server]: ", "ControllerModifyVolume not supported", noChange},
	{"Node Service: NodeStageVolume: ", "NodeStageVolume not supported", noStage},
	{"Node Service: NodeUnstageVolume: ", "NodeUnstageVolume not supported", noStage},
	{"Node Service: NodePublishVolume: with single node multi writer capability: ", "single node multi writer capability", accessMode},
	{"ControllerGetVolumeHealth [Controller Server]: ", "ControllerGetVolumeHealth not supported", noState},
	{"ControllerListVolumeHealth [Controller Server]: ", "ControllerListVolumeHealth not supported", noState},
	{"Node Service: NodeGetStorageHealth: ", "NodeGetStorageHealth not supported", noBackend},
}

// covers says whether a spec of this name may be skipped with these words.
func (r reason) covers(name, says string) bool {
	return strings.HasPrefix(name, r.specs) && strings.Contains(says, r.says) && (r.says != "" || says == "")
}
