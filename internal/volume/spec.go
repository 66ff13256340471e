// SPDX-License-Identifier: Apache-2.0

// Package volume is the vocabulary of bpfvol: what a volume asks for, read once from the strings that a pod, a
// StorageClass or a command line gives.
//
//	spec, err := volume.Parse(map[string]string{
//		"image":  "ghcr.io/acme/count:v1",
//		"attach": "{program: count, xdp: {interface: eth0}}",
//	})
//
// It is pure: it asks neither kernel nor network, and everything else in bpfvol builds on it. How a hook is written
// is said once, in the method shape of its type; reading, writing and docs/attributes.md follow it.
//
// Invariants:
//   - Parse never panics, takes only what it knows, and every error is an *AttributeError that fits an event (FuzzParse);
//   - Parse(s.Attributes()) is s for every s that Parse returned (FuzzParse);
//   - distinct volume ids have distinct file names (TestFileNamesAreDistinctAndSafe).
package volume

// Spec is what a volume was asked to be: its attributes, parsed once at the border.
type Spec struct {
	// Image is the reference as written; package image parses it.
	Image string
	// Attach lists the attachments in the order given. Empty means: every program attaches where its
	// ELF section says, which package loader works out.
	Attach []Attach
	// Maps lists the maps to show. Empty means every map that is not a data section, read-only.
	Maps []MapRef
	// Variables holds global variables to set before load, as YAML values: bool, int64, uint64, string,
	// []any, map[string]any. Package loader checks them against the object's BTF.
	Variables map[string]any
	// MapEntries overrides max_entries by map name.
	MapEntries map[string]uint32
	// PullPolicy is never empty after Parse.
	PullPolicy PullPolicy
}

// Attach is one program at one hook.
type Attach struct {
	Program string
	Hook    Hook
}

// MapRef names a map of the object and how the pod may use it.
type MapRef struct {
	Name   string
	Access Access
}

// Access is what a pod may do with a map.
type Access string

const (
	ReadOnly  Access = "ro"
	ReadWrite Access = "rw"
)

// PullPolicy says when the registry is asked, in kubelet's words.
type PullPolicy string

const (
	PullAlways       PullPolicy = "Always"
	PullIfNotPresent PullPolicy = "IfNotPresent"
	PullNever        PullPolicy = "Never"
)
