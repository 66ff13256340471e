// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Content is what a volume shows.
type Content struct {
	// Volume is what volume.json says, but for its maps: those are filled in from Maps.
	Volume Volume
	// Types is the object's BTF as a file. Empty: no file.
	Types []byte
	Maps  []Map
	// Iterators are those of the programs whose hook is iter.
	Iterators []Iterator
	// Group may use the volume, and nobody else. Nil: everybody may.
	Group *int
	// Context is the SELinux context of all files. "": where there is SELinux, one that every container may use.
	Context string
}

// writable tells whether the volume has a map that the pod may write.
func (c *Content) writable() bool {
	return slices.ContainsFunc(c.Maps, func(m Map) bool { return m.Access == volume.ReadWrite })
}

// Map is a map of the volume. It stays the caller's.
type Map struct {
	Name       string
	Map        *ebpf.Map
	Key, Value btf.Type // nil: no BTF
	Access     volume.Access
}

// Iterator is a program that runs when its file is read, and what it prints is what is read. It stays the caller's.
type Iterator struct {
	Name string // of the program
	Link link.Link
}

// Volume is volume.json. Its fields are part of the fixed interface.
type Volume struct {
	Version  int       `json:"version"` // 1
	Image    Image     `json:"image"`
	Signer   string    `json:"signer"`
	Programs []Program `json:"programs"`
	Maps     []Shown   `json:"maps"`
}

// dirs are the directories of the volume that nobody can write in.
func (v *Volume) dirs() []string {
	dirs := []string{dirMaps, dirJSON}
	if slices.ContainsFunc(v.Programs, func(p Program) bool { return p.Hook == string(volume.KindIter) }) {
		dirs = append(dirs, dirIter)
	}
	return dirs
}

// writable tells whether the volume has the directory rw, too.
func (v *Volume) writable() bool {
	return slices.ContainsFunc(v.Maps, func(m Shown) bool { return m.Access == volume.ReadWrite })
}

// Image is the bytecode image that the programs came from.
type Image struct {
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
}

// Program is an attached program.
type Program struct {
	Name  string `json:"name"`
	Hook  string `json:"hook"`  // as in the attributes: "xdp"
	Point string `json:"point"` // in words: "xdp eth0"
}

// Shown is a map of the volume. Key and Value are C types by name, or sizes where there is no BTF.
type Shown struct {
	Name       string        `json:"name"`
	Type       string        `json:"type"` // in the kernel's words: "lru_hash"
	Key        string        `json:"key"`
	Value      string        `json:"value"`
	MaxEntries uint32        `json:"maxEntries"`
	Access     volume.Access `json:"access"`
	// JSON tells whether there is a file json/<name>; else JSONReason says why not.
	JSON       bool   `json:"json"`
	JSONReason string `json:"jsonReason,omitempty"`
}

const version = 1

// fileName is what bpffs takes as a name.
var fileName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]*$`)

// maxFileName is the length of an ELF symbol that anybody writes.
const maxFileName = 128

func isFileName(name string) bool { return len(name) <= maxFileName && fileName.MatchString(name) }

func (c *Content) check() error {
	seen := map[string]bool{}
	for _, m := range c.Maps {
		switch {
		case !isFileName(m.Name):
			return fmt.Errorf("map %.140q: not a file name on bpffs; letters, digits, _ and - are", m.Name)
		case seen[m.Name]:
			return fmt.Errorf("map %q: shown twice", m.Name)
		}
		seen[m.Name] = true
	}
	for _, it := range c.Iterators {
		if !isFileName(it.Name) {
			return fmt.Errorf("iterator %.140q: not a file name on bpffs; letters, digits, _ and - are", it.Name)
		}
	}
	return nil
}

// owner is whose files are, and what may be done with them.
type owner struct {
	gid       int
	dir, file uint32 // modes
}

// everybody's are the pins, with a group, too. The way to them is through the tmpfs, which is the group's. On a bpffs
// nothing can be: it cannot be idmapped, so with hostUsers: false no process of the pod has a group that it knows.
var (
	everybody = owner{dir: 0o755, file: 0o444}
	writers   = owner{dir: 0o755, file: 0o666}
)

// owner is whose the tmpfs is.
func (c *Content) owner() owner {
	if c.Group == nil {
		return everybody
	}
	return owner{gid: *c.Group, dir: 0o750, file: 0o440}
}
