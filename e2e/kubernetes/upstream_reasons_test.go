// SPDX-License-Identifier: Apache-2.0

//go:build e2e && upstream

package kubernetes_test

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// upstreamReason is why specs of the suite do not run.
type upstreamReason struct {
	specs string // a regular expression that their names match
	says  string // what the suite says as it skips them, in part; empty: it would run them, and is told not to
	why   string
}

const (
	noFiles    = "the spec writes a file into the volume, and a bytecode volume is read-only but for its maps"
	noWriting  = "every mount of a volume is read-only in the container, and the spec wants one that is not; a map that was granted is written by bpf(2)"
	noData     = "a bytecode volume has no data that could be kept, copied or grown"
	noChange   = "an image and what it attaches to cannot change under a running pod: the class is made anew"
	noOptions  = "the driver takes no mount options"
	noImages   = "its images (volume-data-source-validator, hello-populator) are in no Go module and no Debian package; and what it fills is data"
	oneNode    = "the cluster has one node"
	noFigures  = "the suite has no limits for it unless it is told some; make bench and make e2e print our figures"
	noBlock    = "a volume is a directory, never a block device"
	mountGroup = "the driver sets the group as it mounts (VOLUME_MOUNT_GROUP), and kubelet changes none later"
	theSuite   = "the suite has it for late binding alone"
)

// upstreamReasons are all there are; the first that covers a spec counts.
var upstreamReasons = []upstreamReason{
	{`ephemeral should create read/write inline ephemeral volume$`, "", noWriting},
	{`Generic Ephemeral-volume .* should support two pods which have the same volume definition$`, "", noFiles},
	{`\] subPath `, "", noFiles},
	{`\] volumes should store data$`, "", noFiles},
	{`\] volumeIO `, "", noFiles},
	{`\] disruptive `, "", noFiles}, // what they are about: TestKubeletRestarts, TestPodIsDeletedWhileThePluginIsDown
	{`multiVolume should access to two volumes with the same volume mode and retain data across pod recreation on the same node`, "", noFiles},
	{`multiVolume should concurrently access the single volume from pods on the same node`, "", noFiles},
	{`fsgroupchangepolicy \(Always\).*pod created with an initial fsgroup, new pod fsgroup applied`, "", noFiles},
	{`any volume data source`, "", noImages},

	{`should support expansion of pvcs created for ephemeral pvcs$`, "for expansion", noData},
	{`should support expansion of pvcs created for ephemeral pvcs$`, "does not support online volume expansion", noData},
	{`snapshot`, "does not support", noData},
	{`pvc data source`, "does not support cloning", noData},
	{`its clone`, "does not support volume clone", noData},
	{`provision storage with mount options$`, "does not define supported mount option", noOptions},
	{`volume-modify`, "has no configured VolumeAttributesClass", noChange},
	{`fsgroupchangepolicy`, "supports VolumeMountGroup", mountGroup},
	{`on different node`, "Number of available nodes is less than 2", oneNode},
	{`two volumes with different volume mode`, "should be covered by block volume case", noBlock},
	{`\(immediate-binding\)\] ephemeral should support multiple inline`, "separate topology segments", theSuite},
	{`performance`, "doesn't specify performance test options", noFigures},
}

// judgeUpstream prints what ran. It fails for what failed, for what did not run without a reason of ours, and for reasons that
// nothing needs.
func judgeUpstream(t *testing.T, specs []spec) {
	t.Helper()
	var passed, failed []string
	skipped := map[string][]string{} // by the reason why
	used := make([]bool, len(upstreamReasons))
	for _, s := range specs {
		switch s.State {
		case "passed":
			passed = append(passed, s.name())
		case "skipped", "pending":
			i := slices.IndexFunc(upstreamReasons, func(r upstreamReason) bool { return r.covers(s) })
			if i < 0 {
				t.Errorf("skipped, and nobody has written down why: %s (%s)", s.name(), s.Failure.Message)
				continue
			}
			used[i] = true
			skipped[upstreamReasons[i].why] = append(skipped[upstreamReasons[i].why], s.name())
		default:
			failed = append(failed, s.name())
			t.Errorf("%s: %s: %s", s.State, s.name(), s.Failure.Message)
		}
	}
	for i, r := range upstreamReasons {
		if !used[i] {
			t.Errorf("a reason to skip what nobody skips: %q (%s)", r.specs, r.says)
		}
	}
	t.Logf("Kubernetes' storage suite: %d specs, %d passed, %d failed, %d skipped", len(specs), len(passed), len(failed), len(specs)-len(passed)-len(failed))
	t.Logf("passed:\n\t%s", strings.Join(passed, "\n\t"))
	for _, why := range slices.Sorted(maps.Keys(skipped)) {
		t.Logf("%d skipped, as %s:\n\t%s", len(skipped[why]), why, strings.Join(skipped[why], "\n\t"))
	}
}

// covers says whether a spec was skipped for this reason.
func (r upstreamReason) covers(s spec) bool {
	return regexp.MustCompile(r.specs).MatchString(s.name()) && strings.Contains(s.Failure.Message, r.says) && (r.says == "") == (s.Failure.Message == "")
}
