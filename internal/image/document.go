// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types. The documents read the same as OCI's.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerList
}

func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest
}

// document is a manifest or an index.
type document struct {
	MediaType    string              `json:"mediaType"`
	ArtifactType string              `json:"artifactType"`
	Manifests    descriptors         `json:"manifests"`
	Config       *ocispec.Descriptor `json:"config"`
	Layers       descriptors         `json:"layers"`
	Subject      *ocispec.Descriptor `json:"subject"`
	Annotations  map[string]string   `json:"annotations"`
}

// maxDescriptors is how long a list may be: as many signatures as cosign reads of a tag (pkg/oci/internal/signature,
// maxLayers). An empty descriptor takes a few bytes to send, and two hundred in memory.
const maxDescriptors = 1000

// descriptors is a list that is no longer in memory than it may be.
type descriptors []ocispec.Descriptor

// UnmarshalJSON implements json.Unmarshaler.
func (ds *descriptors) UnmarshalJSON(raw []byte) error {
	*ds = nil
	dec := json.NewDecoder(bytes.NewReader(raw))
	switch first, err := dec.Token(); {
	case err != nil:
		return err
	case first == nil: // null
		return nil
	case first != json.Delim('['):
		return errors.New("not a list")
	}
	*ds = descriptors{}
	for dec.More() {
		if len(*ds) == maxDescriptors {
			return fmt.Errorf("%w: a list in its manifest has more than %d entries", ErrTooLarge, maxDescriptors)
		}
		var d ocispec.Descriptor
		if err := dec.Decode(&d); err != nil {
			return err
		}
		*ds = append(*ds, d)
	}
	return nil
}

// parseDocument reads raw as what mediaType says. A document that could be read both as index and as manifest, or
// that calls itself something else, is refused: who signed or scanned it may have read the other one
// (CVE-2021-41190).
func parseDocument(mediaType string, raw []byte) (*document, error) {
	if !isIndex(mediaType) && !isManifest(mediaType) {
		return nil, fmt.Errorf("%w: media type %s; push it as an OCI or Docker image", ErrUnsupported, quote(mediaType))
	}
	var d document
	if err := json.Unmarshal(raw, &d); err != nil {
		if errors.Is(err, ErrTooLarge) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %s is not JSON as it should be", ErrUnsupported, mediaType)
	}
	if d.MediaType != "" && d.MediaType != mediaType {
		return nil, fmt.Errorf("%w: served as %s, but says it is %s", ErrAmbiguous, mediaType, quote(d.MediaType))
	}
	if d.Manifests != nil && (d.Layers != nil || d.Config != nil) {
		return nil, fmt.Errorf("%w: it has both manifests and layers", ErrAmbiguous)
	}
	if isIndex(mediaType) != (d.Manifests != nil) {
		return nil, fmt.Errorf("%w: %s without its parts", ErrUnsupported, mediaType)
	}
	return &d, nil
}

// choose returns the manifest for arch. Entries for unknown/unknown are what buildx adds: attestations, not images.
func (d *document) choose(arch string) (ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	for _, m := range d.Manifests {
		if m.Platform != nil && m.Platform.OS == "linux" && m.Platform.Architecture == arch && isManifest(m.MediaType) {
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		has := "no image for any"
		if all := d.platforms(); len(all) > 0 {
			has = quote(strings.Join(all, ", "))
		}
		return ocispec.Descriptor{}, fmt.Errorf("%w: no image for linux/%s; it has: %s", ErrPlatform, arch, has)
	}
	if i := slices.IndexFunc(found, func(m ocispec.Descriptor) bool { return m.Platform.Variant == "" }); i > 0 {
		return found[i], nil
	}
	return found[0], nil
}

// platforms lists what an index has images for, as "linux/amd64".
func (d *document) platforms() []string {
	var out []string
	for _, m := range d.Manifests {
		if m.Platform == nil || m.Platform.OS == "unknown" || m.Platform.Architecture == "unknown" || !isManifest(m.MediaType) {
			continue
		}
		out = append(out, m.Platform.OS+"/"+m.Platform.Architecture)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
