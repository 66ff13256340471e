// SPDX-License-Identifier: Apache-2.0

package podfs

import "github.com/bpfvol/bpfvol/internal/volume"

// newWritable makes the bpffs of the maps that the pod may write. It is one of its own because what keeps a map from
// being written is its superblock.
//
// The mount is read-only all the same: that stops who would make, rename or remove files, a container's root too, and
// does not stop BPF_OBJ_GET, which asks the superblock and the file's mode (bpf_obj_do_get in kernel/bpf/inode.c).
func newWritable(l label, maps []Map) (_ *superblock, err error) {
	s, err := newPins(l, dirWritable)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.root.Close()
		}
	}()
	for _, m := range maps {
		if m.Access != volume.ReadWrite {
			continue
		}
		if err := pinAs(m, dirWritable, s, writers); err != nil {
			return nil, err
		}
	}
	return s, s.lock()
}
