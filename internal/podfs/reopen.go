// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// MapID is the number of a map that a mounted volume shows: who lost all other pins of it opens it by that.
func MapID(target, name string) (ebpf.MapID, error) {
	f, err := open(target)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	v, err := readVolume(f)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(v.Maps, func(m Shown) bool { return m.Name == name })
	if i < 0 {
		return 0, fmt.Errorf("map %.64q: not shown", name)
	}
	m, err := ebpf.LoadPinnedMap(fmt.Sprintf("/proc/self/fd/%d/%s/%s", f.Fd(), dirMaps, name), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, fmt.Errorf("map %.64q: %w", name, err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("map %.64q: %w", name, err)
	}
	id, _ := info.ID()
	return id, nil
}
