// SPDX-License-Identifier: Apache-2.0

// Package claim makes of a PersistentVolumeClaim what its StorageClass says: a volume of its own id, with the class's
// parameters as its attributes. Nothing is made anywhere by that: a bytecode volume has no data, so it exists as soon as
// somebody names it, and the node does the rest when a pod mounts it.
//
//	v, err := claim.New("pvc-0b3f...", class.Parameters)
//
// It is pure, as the Controller service of package csi and `bpfvol provision` both give its answers.
//
// Invariants:
//   - what New returns, a node can parse: the user of a bad class reads of it at the claim, not at the pod
//     (TestBadParametersAreRefused);
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

// ReservedPrefix is that of the keys by which Kubernetes speaks to drivers.
const ReservedPrefix = "csi.storage.k8s.io/"

// ParameterError says which parameter of a class is wrong, and how to write it.
type ParameterError struct {
	Key string // with the path inside it; empty if it is about all of them
	Msg string
}

func (e *ParameterError) Error() string {
	if e.Key == "" {
		return "parameters: " + e.Msg
	}
	return "parameters: " + e.Key + ": " + e.Msg
}

// New returns the volume of a name, which Kubernetes makes of a claim. Every error is a *ParameterError.
func New(name string, parameters map[string]string) (Volume, error) {
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		if strings.HasPrefix(key, ReservedPrefix) {
			return Volume{}, &ParameterError{Msg: fmt.Sprintf("key %.100q is Kubernetes' own; remove it", key)}
		}
	}
	if _, err := volume.Parse(parameters); err != nil {
		var bad *volume.AttributeError
		if !errors.As(err, &bad) {
			return Volume{}, &ParameterError{Msg: err.Error()}
		}
		return Volume{}, &ParameterError{Key: bad.Key, Msg: bad.Msg}
	}
	return Volume{ID: ID(name), Attributes: maps.Clone(parameters)}, nil
}

// idPrefix begins every id that ID returns.
const idPrefix = "bpfvol-"

// maxID is the size of a string in the CSI specification ("Size Limits").
const maxID = 128

// ID returns the id of the volume of a name: the name where it can stand in an id, else its hash.
func ID(name string) string {
	id := idPrefix + volume.FileName(name)
	if len(id) > maxID {
		sum := sha256.Sum256([]byte(name))
		id = idPrefix + "sha256-" + hex.EncodeToString(sum[:])
	}
	return id
}

// IsID says whether ID may have returned id. Whether it did, nobody has written down.
func IsID(id string) bool {
	name, ok := strings.CutPrefix(id, idPrefix)
	return ok && name != "" && len(id) <= maxID && volume.FileName(id) == id
}
