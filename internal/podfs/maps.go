// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/podfs/mapjson"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// newPins makes a bpffs with the volume's directories. Only those are attached: kernels with
// CONFIG_BPF_PRELOAD put iterators over all maps and programs of the machine into the root, which are none of the pod's
// business, and let nobody remove them.
func newPins(l label, dirs ...string) (*superblock, error) {
	s, err := newSuperblock("bpf", everybody, l, nil)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		if err := s.mkdir(dir, everybody); err != nil {
			s.root.Close()
			return nil, err
		}
	}
	return s, nil
}

// pinLink pins a program's iterator.
func pinLink(it Iterator, s *superblock) error {
	info, err := it.Link.Info()
	if err != nil {
		return fmt.Errorf("iterator %q: %w", it.Name, err)
	}
	// As with maps: the caller's may be pinned, and Pin would move that.
	clone, err := link.NewFromID(info.ID)
	if err != nil {
		return fmt.Errorf("iterator %q: %w", it.Name, err)
	}
	defer clone.Close()
	if err := pin(clone, dirIter+"/"+it.Name, s, everybody); err != nil {
		return fmt.Errorf("iterator %q: %w", it.Name, err)
	}
	return nil
}

// pinMap pins a map and, where its type allows, an iterator that prints it.
func pinMap(m Map, s *superblock, types *btf.Cache) (Shown, error) {
	shown := Shown{
		Name:       m.Name,
		Type:       mapjson.TypeName(m.Map.Type()),
		Key:        typeName(m.Key, m.Map.KeySize()),
		Value:      typeName(m.Value, m.Map.ValueSize()),
		MaxEntries: m.Map.MaxEntries(),
		Access:     cmp.Or(m.Access, volume.ReadOnly),
	}
	if err := pinAs(m, dirMaps, s, everybody); err != nil {
		return Shown{}, err
	}
	var err error
	shown.JSONReason, err = pinIterator(m, s, types)
	if err != nil {
		return Shown{}, fmt.Errorf("map %q: json: %w", m.Name, err)
	}
	shown.JSON = shown.JSONReason == ""
	return shown, nil
}

// pinAs pins a map in a directory.
func pinAs(m Map, dir string, s *superblock, o owner) error {
	// A clone does not know the caller's pin. Pin would move that one.
	clone, err := m.Map.Clone()
	if err != nil {
		return fmt.Errorf("map %q: %w", m.Name, err)
	}
	defer clone.Close()
	if err := pin(clone, dir+"/"+m.Name, s, o); err != nil {
		return fmt.Errorf("map %q: %w", m.Name, err)
	}
	return nil
}

// pinIterator pins an iterator that prints the map, or returns the reason why there is none. A volume is good without it.
func pinIterator(m Map, s *superblock, types *btf.Cache) (reason string, err error) {
	spec, err := mapjson.Iterator(mapjson.MapSpec{
		Name:      m.Name,
		Type:      m.Map.Type(),
		KeySize:   m.Map.KeySize(),
		ValueSize: m.Map.ValueSize(),
		Key:       m.Key,
		Value:     m.Value,
	})
	if errors.Is(err, mapjson.ErrNoIterator) || errors.Is(err, mapjson.ErrTooWide) {
		return fmt.Sprintf("%.300s", err), nil
	}
	if err != nil {
		return "", err
	}
	it, err := attachIterator(spec, m.Map, types)
	if refused(err) {
		return fmt.Sprintf("the kernel refuses the iterator: %.200v", err), nil
	}
	if err != nil {
		return "", err
	}
	defer it.Close()
	return "", pin(it, dirJSON+"/"+m.Name, s, everybody)
}

func attachIterator(spec *ebpf.CollectionSpec, m *ebpf.Map, types *btf.Cache) (*link.Iter, error) {
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return link.AttachIter(link.IterOptions{Program: coll.Programs[mapjson.ProgramName], Map: m})
}

// refused tells a kernel that has no such iterators, or forbids them, from one that is short of memory and the like.
func refused(err error) bool {
	for _, answer := range []error{ebpf.ErrNotSupported, unix.EPERM, unix.EACCES, unix.EINVAL} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return false
}

func pin(object interface{ Pin(string) error }, name string, s *superblock, o owner) error {
	if err := object.Pin(s.path(name)); err != nil {
		return err
	}
	return s.own(name, o.gid, o.file)
}
