// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// recordSchema is the version of the record's fields. A reader refuses a newer one rather than guess.
const recordSchema = 2

type state string

const (
	statePublishing state = "publishing" // effects may exist; not yet usable
	statePublished  state = "published"
	// stateUnreadable is never written: List says so of a record that cannot be read.
	stateUnreadable state = "unreadable"
)

// Record says what a volume was asked to be and what was decided. It holds no secret. What really runs is read
// from the kernel, never from here.
type Record struct {
	Schema     int               `json:"schema"`
	VolumeID   string            `json:"volumeID"`
	Persistent bool              `json:"persistent,omitempty"` // several targets may share it
	State      state             `json:"state"`                // of what runs; each target has its own
	Attributes map[string]string `json:"attributes"`
	Created    time.Time         `json:"created"`
	Targets    []Target          `json:"targets"` // in the order in which they came

	// Image is the reference as asked, Digest what it resolved to, Object the bytes that run: enough to load
	// the same programs again without a network.
	Image  string        `json:"image"`
	Digest digest.Digest `json:"digest"`
	Object digest.Digest `json:"object"`
	// Programs are the attachments in the order they were made, and Attachments what it takes to make them again.
	Programs    []podfs.Program `json:"programs"`
	Attachments []Attachment    `json:"attachments,omitempty"`
}

// Target is a place where a volume is shown, and for whom.
type Target struct {
	Path     string `json:"path"`
	Pod      Pod    `json:"pod,omitzero"`
	Group    *int   `json:"group,omitempty"`
	Context  string `json:"context,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Device is the file system of kubelet's pods, which tells pods that are gone from a disk that is.
	Device uint64 `json:"device,omitempty"`
	// Policy admitted the pod, as Signer satisfies its Authority ("key[0]"; "" where it asks for no signature).
	Policy    string `json:"policy"`
	Authority string `json:"authority,omitempty"`
	Signer    string `json:"signer"`
	// Files is how many files are shown, for NodeGetVolumeStats.
	Files int   `json:"files"`
	State state `json:"state"`
}

// whole says whether the target shows its volume.
func (t *Target) whole() (bool, error) {
	if t.State != statePublished {
		return false, nil
	}
	return podfs.Mounted(t.Path)
}

// runs says whether the volume is more than what a crash left of it.
func (r *Record) runs() bool { return r.State == statePublished && len(r.Targets) > 0 }

// Target returns the target at path, or nil.
func (r *Record) Target(path string) *Target {
	for i := range r.Targets {
		if r.Targets[i].Path == path {
			return &r.Targets[i]
		}
	}
	return nil
}

// paths are those of all targets. A record that there is none of has none.
func (r *Record) paths() []string {
	if r == nil {
		return nil
	}
	var paths []string
	for _, t := range r.Targets {
		paths = append(paths, t.Path)
	}
	return paths
}

// pods are those that the volume is for.
func (r *Record) pods() []Pod {
	var pods []Pod
	for _, t := range r.Targets {
		if t.Pod != (Pod{}) {
			pods = append(pods, t.Pod)
		}
	}
	return pods
}

// settles says whether req has been carried out. Another target may be added to a PersistentVolume; any other difference is
// an ErrConflict.
func (r *Record) settles(req Request) (bool, error) {
	t, same := r.Target(req.Target), maps.Equal(r.Attributes, req.Attributes)
	switch {
	case t == nil && same && r.Persistent && req.Subject.Persistent:
		return false, nil
	case t != nil && same && t.ReadOnly == req.ReadOnly && t.Context == req.Context &&
		(t.Group == nil) == (req.Group == nil) && (t.Group == nil || *t.Group == *req.Group):
		return true, nil
	}
	return false, fmt.Errorf("volume: %w; unpublish it first", ErrConflict)
}

// records keeps one JSON file per volume. A file is replaced as a whole: a crash leaves the old one or the new one.
type records struct{ dir string }

func (rs records) path(name string) string { return filepath.Join(rs.dir, name+".json") }

// read returns ErrUnknownVolume when there is no record, and an *unreadableError when there is one that can't be used.
func (rs records) read(name string) (*Record, error) {
	data, err := readRegular(rs.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrUnknownVolume
	}
	if err != nil {
		return nil, err
	}
	var version struct {
		Schema int `json:"schema"`
	}
	// What has another shape in another version is an error, too, but the version is decoded all the same.
	err = json.Unmarshal(data, &version)
	switch {
	case len(data) == 0:
		return nil, &unreadableError{why: "it is empty"}
	case errors.As(err, new(*json.SyntaxError)):
		return nil, &unreadableError{why: "it is no JSON"}
	case version.Schema > recordSchema:
		return nil, &unreadableError{newer: true, why: fmt.Sprintf("a newer version of bpfvol wrote it: schema %d, this one reads %d", version.Schema, recordSchema)}
	case version.Schema != recordSchema:
		return nil, &unreadableError{why: fmt.Sprintf("schema %d, this version reads %d", version.Schema, recordSchema)}
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, &unreadableError{why: "it is malformed"}
	}
	if volume.FileName(r.VolumeID) != name {
		return nil, &unreadableError{why: "it is of another volume"}
	}
	return &r, nil
}

func (rs records) write(r *Record) (err error) {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	path := rs.path(volume.FileName(r.VolumeID))
	tmp, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return recordError(err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, werr := tmp.Write(append(data, '\n'))
	if err := errors.Join(werr, tmp.Sync(), tmp.Close()); err != nil {
		return recordError(err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return recordError(err)
	}
	return nil
}

// recordError leaves out the path, which names the volume.
func recordError(err error) error {
	return fmt.Errorf("record: %w; look at the node plugin's state directory", withoutPath(err))
}

// withoutPath is the kernel's answer alone, where there is one.
func withoutPath(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// remove drops the record, and what a crash left of one that was being written.
func (rs records) remove(name string) error {
	for _, path := range []string{rs.path(name) + ".tmp", rs.path(name)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return recordError(err)
		}
	}
	return nil
}

// names lists the volumes that have a record, whole or half-written. Before the first publish there is no directory.
func (rs records) names() ([]string, error) {
	entries, err := os.ReadDir(rs.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("records: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(strings.TrimSuffix(e.Name(), ".tmp"), ".json"); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil // a record that is being written has two files
}
