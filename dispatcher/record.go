// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/pin"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// recordVersion is raised when an older reader would misunderstand a record.
const recordVersion = 2

// pointRecord is what cannot be read back from a point's link.
type pointRecord struct {
	Version   int            `json:"version"`
	Interface string         `json:"interface"`
	Carrier   string         `json:"carrier"`
	Mode      volume.XDPMode `json:"mode,omitempty"`
	// Qdisc says that the clsact qdisc is ours to remove.
	Qdisc bool `json:"qdisc,omitempty"`
}

// pinRecord writes a record to a pin. A record that is there is replaced in one step.
func (s *site) pinRecord(path, name string, record any) error {
	text, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return s.pinBytes(path, name, text)
}

// pinBytes pins bytes that nobody can change. What is there is replaced in one step.
func (s *site) pinBytes(path, name string, b []byte) error {
	m, err := pin.Bytes(name, b)
	if err != nil {
		return err
	}
	defer m.Close()
	return s.replacePin(path, m.Pin)
}

// pinProgram pins a program without moving the pins that the caller may have of it. A pin that is there is replaced in
// one step.
func (s *site) pinProgram(path string, prog *ebpf.Program) error {
	own, err := prog.Clone()
	if err != nil {
		return err
	}
	defer own.Close()
	return s.replacePin(path, own.Pin)
}

// pinMap is pinProgram for a map.
func (s *site) pinMap(path string, m *ebpf.Map) error {
	own, err := m.Clone()
	if err != nil {
		return err
	}
	defer own.Close()
	return s.replacePin(path, own.Pin)
}

// newSuffix is that of a pin that is about to replace another.
const newSuffix = "-new"

func (s *site) replacePin(path string, pinTo func(string) error) error {
	fresh := path + newSuffix
	if err := pin.Remove(fresh); err != nil {
		return err
	}
	if err := pinTo(fresh); err != nil {
		return err
	}
	s.reached(filepath.Base(fresh) + " pinned")
	return os.Rename(fresh, path)
}

// versioned is a record of any kind.
type versioned interface{ version() int }

func (r *pointRecord) version() int  { return r.Version }
func (r *setRecord) version() int    { return r.Version }
func (r *memberRecord) version() int { return r.Version }

// readRecord reads a record; os.ErrNotExist if there is none.
func readRecord(path string, record versioned) error {
	text, err := pin.ReadBytes(path)
	if err != nil {
		return err
	}
	// What has another shape in another version is an error, too, but the version is decoded all the same.
	err = json.Unmarshal(text, record)
	if malformed := (*json.SyntaxError)(nil); errors.As(err, &malformed) {
		return fmt.Errorf("record: %w", err)
	}
	if v := record.version(); v != recordVersion {
		return fmt.Errorf("record has version %d, this bpfvol reads %d; remove the volume with the version that made it", v, recordVersion)
	}
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}
