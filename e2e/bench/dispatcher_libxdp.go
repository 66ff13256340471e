// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// libxdpConfig is struct xdp_dispatcher_config of xdp-tools (headers/xdp/prog_dispatcher.h).
type libxdpConfig struct {
	Magic, Version, Programs, Frags uint8
	ChainCallActions                [10]uint32
	RunPriorities, Flags            [10]uint32
}

// libxdp loads the dispatcher of libxdp for each number of programs. Its ten places hold functions that do nothing, to
// be replaced by freplace with programs of users. Many kernels refuse freplace, so here nothing replaces them: they cost
// what a call does, and the programs would come on top.
func (w *workshop) libxdp(numbers ...int) ([]*ebpf.Program, error) {
	found, err := filepath.Glob("/usr/lib/*/bpf/xdp-dispatcher.o")
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("xdp-dispatcher.o is not installed; install xdp-tools")
	}
	var programs []*ebpf.Program
	for _, n := range numbers {
		spec, err := ebpf.LoadCollectionSpec(found[0])
		if err != nil {
			return nil, err
		}
		config := libxdpConfig{Magic: 236, Version: 2, Programs: uint8(n)}
		for i := range n {
			config.ChainCallActions[i] = 1<<xdpPass | 1<<31 // 31 is what a function returns that nothing replaced
		}
		text, err := binary.Append(nil, binary.NativeEndian, config)
		if err != nil {
			return nil, err
		}
		spec.Maps[".rodata"].Contents = []ebpf.MapKV{{Key: uint32(0), Value: text}}
		coll, err := w.collection(spec, "xdp_dispatcher")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", found[0], err)
		}
		programs = append(programs, coll.Programs["xdp_dispatcher"])
	}
	return programs, nil
}
