// SPDX-License-Identifier: Apache-2.0

// Package claim makes of a PersistentVolumeClaim what its StorageClass says: a volume of its own id, with the class's
// parameters as its attributes. Nothing is made anywhere by that: a bytecode volume has no data, so it exists as soon as
// somebody names it, and the node does the rest when a pod mounts it.
//
//	v, err := claim.New(claim.Request{Name: "pvc-0b3f...", Parameters: class.Parameters})
//
// It is pure, as the Controller service of package csi and `bpfvol provision` both give its answers.
//
// Invariants:
//   - what New returns, a node can parse: the user of a bad class reads of it at the claim, not at the pod
//     (TestWhatNoNodeCouldDoIsRefused);
//   - a name has one id, two names have two, and every id is a safe file name (TestIDs);
//   - nobody can speak in kubelet's name: keys of Kubernetes are no attributes (TestReservedParametersAreRefused).
package claim

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Volume is what a claim gets.
type Volume struct {
	ID         string
	Attributes map[string]string
}

// OtherOption is what is wrong with a mount option that is not an SELinux context.
const OtherOption = "a bytecode volume takes none but context=; leave the others out"

// ReservedPrefix is that of the keys by which Kubernetes speaks to drivers.
const ReservedPrefix = "csi.storage.k8s.io/"

// Request is what a claim and its class ask for.
type Request struct {
	// Name is Kubernetes' name of the volume, one for each claim.
	Name string
	// Parameters are the class's.
	Parameters map[string]string
	// MountOptions are the class's. What an SELinux context looks like, the node knows.
	MountOptions []string
	// DataSource says that the volume is to begin as a copy of something.
	DataSource bool
	// AttributesClass says that the claim names a VolumeAttributesClass.
	AttributesClass bool
}

// Error says what of a claim or its class is wrong, and how to write it.
type Error struct {
	Field string // as in the objects, with the path inside it
	Msg   string
}

func (e *Error) Error() string { return e.Field + ": " + e.Msg }

// New returns the volume of a claim. Every error is an *Error.
func New(req Request) (Volume, error) {
	switch {
	case slices.ContainsFunc(req.MountOptions, func(o string) bool { return !strings.HasPrefix(o, "context=") }):
		return Volume{}, &Error{"mountOptions", OtherOption}
	case req.DataSource:
		return Volume{}, &Error{"dataSource", "a bytecode volume has no data to copy; leave it out"}
	case req.AttributesClass:
		return Volume{}, &Error{"volumeAttributesClassName", "the attributes of a bytecode volume cannot change; leave it out"}
	}
	for _, key := range slices.Sorted(maps.Keys(req.Parameters)) {
		if strings.HasPrefix(key, ReservedPrefix) {
			return Volume{}, Parameter(key, "is Kubernetes' own; remove it")
		}
	}
	if _, err := volume.Parse(req.Parameters); err != nil {
		return Volume{}, fromAttribute(err)
	}
	return Volume{ID: ID(req.Name), Attributes: maps.Clone(req.Parameters)}, nil
}

// Parameter is the error of one key of a class.
func Parameter(key, msg string) error {
	return &Error{"parameters", fmt.Sprintf("key %.100q %s", key, msg)}
}

// fromAttribute says of a parameter what package volume says of an attribute.
func fromAttribute(err error) error {
	var bad *volume.AttributeError
	switch {
	case !errors.As(err, &bad):
		return &Error{"parameters", err.Error()}
	case bad.Key == "":
		return &Error{"parameters", bad.Msg}
	}
	return &Error{"parameters: " + bad.Key, bad.Msg}
}

// idPrefix begins every id that ID returns.
const idPrefix = "bpfvol-"

// MaxID is the longest id, in bytes: the size of a string in the CSI specification ("Size Limits").
const MaxID = 128

// ID returns the id of the volume of a name: the name where it can stand in an id, else its hash.
func ID(name string) string {
	id := idPrefix + volume.FileName(name)
	if len(id) > MaxID {
		sum := sha256.Sum256([]byte(name))
		id = idPrefix + "sha256-" + hex.EncodeToString(sum[:])
	}
	return id
}

// IsID says whether ID may have returned id. Whether it did, nobody has written down.
func IsID(id string) bool {
	name, ok := strings.CutPrefix(id, idPrefix)
	return ok && name != "" && len(id) <= MaxID && volume.FileName(id) == id
}
