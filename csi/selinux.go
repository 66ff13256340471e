// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/bpfvol/bpfvol/internal/claim"
)

// maxContext is the longest option that fsconfig(2) takes (fs/fsopen.c), less the NUL.
const maxContext = 255

// contextForm is what an SELinux context looks like, user:role:type and often a range of levels, such as
// system_u:object_r:container_file_t:s0:c15,c25. Whether there is such a one, the node's policy says.
var contextForm = func() *regexp.Regexp {
	const (
		name  = `[A-Za-z0-9_.-]+`
		word  = `[A-Za-z0-9_]+`
		level = word + `(:` + word + `([.,]` + word + `)*)?`
	)
	return regexp.MustCompile(`^` + name + `:` + name + `:` + name + `(:` + level + `(-` + level + `)?)?$`)
}()

// securityContext returns the SELinux context in a volume's mount flags, "" for none, and refuses every other flag. Of a
// PersistentVolume kubelet passes it on where the CSIDriver object says seLinuxMount: true, in quotes because of its
// commas (AddSELinuxMountOption in Kubernetes' pkg/volume/util/selinux.go). Flags may hold secrets (csi.proto,
// MountVolume), so no message repeats them.
func securityContext(flags []string) (string, error) {
	label := ""
	for _, flag := range flags {
		value, ok := strings.CutPrefix(flag, "context=")
		switch {
		case !ok:
			return "", &requestError{"mountOptions", claim.OtherOption}
		case label != "":
			return "", &requestError{"mountOptions", "context= is given twice; give it once"}
		}
		if quoted, ok := strings.CutPrefix(value, `"`); ok {
			value = strings.TrimSuffix(quoted, `"`)
		}
		switch {
		case len(value) > maxContext:
			return "", &requestError{"mountOptions", fmt.Sprintf("context= has %d bytes; at most %d are possible", len(value), maxContext)}
		case !contextForm.MatchString(value):
			return "", &requestError{"mountOptions", "context= is no SELinux context; write one like system_u:object_r:container_file_t:s0"}
		}
		label = value
	}
	return label, nil
}
