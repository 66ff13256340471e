// SPDX-License-Identifier: Apache-2.0

package volume

import "slices"

//go:generate go test -run ^TestDocumentIsCurrent$ -update .

// Attribute describes one key of a volume's attributes.
type Attribute struct {
	Key     string
	Type    string
	Default string // what leaving it out means
	Doc     string

	read  func(*Spec, string) error
	write func(Spec) string // "" for what is default
}

// The keys, for who writes attributes.
const (
	KeyImage      = "image"
	KeyAttach     = "attach"
	KeyMaps       = "maps"
	KeyVariables  = "variables"
	KeyMapEntries = "mapEntries"
	KeyPullPolicy = "pullPolicy"
)

// Attributes are the keys that Parse knows, in the order in which the documentation shows them.
var Attributes = []Attribute{
	{
		Key: KeyImage, Type: "image reference", Default: "required",
		Doc:  "the bytecode image; best with a digest, as in `ghcr.io/acme/count@sha256:...`",
		read: func(s *Spec, v string) error { s.Image = v; return checkImage(v) },
		write: func(s Spec) string {
			return s.Image
		},
	},
	{
		Key: KeyAttach, Type: "YAML list", Default: "every program attaches where its ELF section says",
		Doc:  "one entry for each attachment: a `program` and one hook; see below",
		read: func(s *Spec, v string) (err error) { s.Attach, err = parseAttach(v); return err },
		write: func(s Spec) string {
			if len(s.Attach) == 0 {
				return ""
			}
			return MarshalAttach(s.Attach)
		},
	},
	{
		Key: KeyMaps, Type: "comma list", Default: "every map that is not a data section, read-only",
		Doc:   "the maps to show, each `name`, or `name:rw` to let the pod write it; data sections by name without the dot: `rodata`",
		read:  func(s *Spec, v string) (err error) { s.Maps, err = parseMaps(v); return err },
		write: func(s Spec) string { return marshalMaps(s.Maps) },
	},
	{
		Key: KeyVariables, Type: "YAML map", Default: "as in the object",
		Doc:  "global variables to set before the programs are loaded; checked against the object's BTF",
		read: func(s *Spec, v string) (err error) { s.Variables, err = parseVariables(v); return err },
		write: func(s Spec) string {
			if len(s.Variables) == 0 {
				return ""
			}
			return marshalVariables(s.Variables)
		},
	},
	{
		Key: KeyMapEntries, Type: "YAML map", Default: "as in the object",
		Doc:  "how many entries a map can hold, by map name; for objects whose user space sizes maps",
		read: func(s *Spec, v string) (err error) { s.MapEntries, err = parseMapEntries(v); return err },
		write: func(s Spec) string {
			if len(s.MapEntries) == 0 {
				return ""
			}
			return marshalMapEntries(s.MapEntries)
		},
	},
	{
		Key: KeyPullPolicy, Type: oneOf(words(pullPolicies)), Default: "`Always` for the tag `latest` and for no tag, else `IfNotPresent`",
		Doc: "when the registry is asked",
		read: func(s *Spec, v string) error {
			s.PullPolicy = PullPolicy(v)
			if !slices.Contains(pullPolicies, s.PullPolicy) {
				return unknown("value", v, words(pullPolicies))
			}
			return nil
		},
		write: func(s Spec) string {
			if s.PullPolicy == defaultPullPolicy(s.Image) {
				return ""
			}
			return string(s.PullPolicy)
		},
	},
}

var pullPolicies = []PullPolicy{PullAlways, PullIfNotPresent, PullNever}

func attributeKeys() []string {
	keys := make([]string, len(Attributes))
	for i, a := range Attributes {
		keys[i] = a.Key
	}
	return keys
}
