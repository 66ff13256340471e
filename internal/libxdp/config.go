// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What xdp-tools' headers/xdp/prog_dispatcher.h defines, by its names there.
const (
	configMagic = 236 // XDP_DISPATCHER_MAGIC: 'X' + 'D' + 'P'
	retval      = 31  // XDP_DISPATCHER_RETVAL: what an empty slot returns
	maxSlots    = 10  // MAX_DISPATCHER_ACTIONS
)

// alwaysProceed is in every slot's chain call actions, so that a slot whose program is gone stops nothing.
const alwaysProceed = 1 << retval

// hasFrags is BPF_F_XDP_HAS_FRAGS, a flag of programs and of slots.
const hasFrags = unix.BPF_F_XDP_HAS_FRAGS

// The versions that are known, and the length of their struct xdp_dispatcher_config. Version 3 came with xdp-tools 1.6
// and says one thing more: whether the dispatcher is bound to its device.
const (
	version2 = 2
	version3 = 3

	arraysEnd = 4 + 3*4*maxSlots
	size2     = arraysEnd
	size3     = arraysEnd + 4 // a byte and padding
)

// config is what a dispatcher says about itself, in the one entry of its one map.
type config struct {
	version  uint8
	frags    bool // the dispatcher was loaded with BPF_F_XDP_HAS_FRAGS
	devBound bool
	slots    []slotConfig
}

// slotConfig is what the dispatcher says about a component.
type slotConfig struct {
	actions  uint32 // bit n: the next component runs after verdict n
	priority uint32
	flags    uint32
}

// versionError says that a dispatcher is of a version that is not known here: 0 if it says none, as those before 2 do.
type versionError struct{ version uint8 }

func (e *versionError) Error() string {
	if e.version == 0 {
		return "it is a dispatcher of libxdp before version 2, and this bpfvol knows 2 and 3"
	}
	return fmt.Sprintf("it is a dispatcher of libxdp's version %d, and this bpfvol knows 2 and 3", e.version)
}

// decodeConfig reads what some program wrote.
func decodeConfig(b []byte) (config, error) {
	if len(b) < 4 || b[0] != configMagic {
		return config{}, &versionError{}
	}
	c := config{version: b[1], frags: b[3] != 0}
	switch {
	case c.version == version2 && len(b) == size2:
	case c.version == version3 && len(b) == size3:
		c.devBound = b[arraysEnd] != 0
	case c.version == version2 || c.version == version3:
		return config{}, fmt.Errorf("the configuration of version %d has %d bytes", c.version, len(b))
	default:
		return config{}, &versionError{c.version}
	}
	n := int(b[2])
	if n < 1 || n > maxSlots {
		return config{}, fmt.Errorf("the configuration counts %d components, of 1 to %d", n, maxSlots)
	}
	for i := range n {
		actions, priority, flags := c.fields(b, i)
		c.slots = append(c.slots, slotConfig{
			actions:  binary.NativeEndian.Uint32(actions),
			priority: binary.NativeEndian.Uint32(priority),
			flags:    binary.NativeEndian.Uint32(flags),
		})
	}
	return c, nil
}

// encode is the reverse of decodeConfig.
func (c config) encode() []byte {
	size := size2
	if c.version == version3 {
		size = size3
	}
	b := make([]byte, size)
	b[0], b[1], b[2], b[3] = configMagic, c.version, uint8(len(c.slots)), oneIf(c.frags)
	for i, s := range c.slots {
		actions, priority, flags := c.fields(b, i)
		binary.NativeEndian.PutUint32(actions, s.actions)
		binary.NativeEndian.PutUint32(priority, s.priority)
		binary.NativeEndian.PutUint32(flags, s.flags)
	}
	if c.version == version3 {
		b[arraysEnd] = oneIf(c.devBound)
	}
	return b
}

// fields are where slot i is in the three arrays, chain_call_actions, run_prios and program_flags.
func (config) fields(b []byte, i int) (actions, priority, flags []byte) {
	at := func(array int) []byte { return b[4+4*(array*maxSlots+i):] }
	return at(0), at(1), at(2)
}

func oneIf(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// newConfigMap makes the map as libbpf makes it of libxdp's object: read-only for programs, and frozen.
func newConfigMap(c config) (*ebpf.Map, error) {
	value := c.encode()
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "xdp_disp.rodata", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(value)), MaxEntries: 1,
		Flags:    unix.BPF_F_RDONLY_PROG,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: value}},
	})
	if err != nil {
		return nil, err
	}
	if err := m.Freeze(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// readConfig reads the configuration of a program that is called a dispatcher. Any program may be called so.
func readConfig(info *ebpf.ProgramInfo) (config, error) {
	ids, _ := info.MapIDs()
	if len(ids) != 1 {
		return config{}, fmt.Errorf("it has the name of libxdp's dispatcher, but %d maps", len(ids))
	}
	m, err := ebpf.NewMapFromID(ids[0])
	if err != nil {
		return config{}, err
	}
	defer m.Close()
	if m.Type() != ebpf.Array || m.KeySize() != 4 || m.MaxEntries() != 1 || m.Flags()&unix.BPF_F_RDONLY_PROG == 0 || m.ValueSize() > 1<<12 {
		return config{}, errors.New("it has the name of libxdp's dispatcher, but its map is no configuration")
	}
	b, err := m.LookupBytes(uint32(0))
	if err != nil {
		return config{}, err
	}
	return decodeConfig(b)
}
