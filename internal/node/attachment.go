// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"

	"github.com/bpfvol/bpfvol/internal/netns"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Attachment is all that is needed to attach a program again, where somebody ended it. What was asked for is not enough: an
// ELF section may have said where, and @default-route or a name may mean another interface by now.
type Attachment struct {
	// Attach is an entry of the attribute of that name, about one interface at most.
	Attach string `json:"attach"`
	// NetNS is the cookie of the network namespace that it is in, of hooks of the network, and IfIndex the interface there.
	NetNS   uint64 `json:"netns,omitempty"`
	IfIndex int    `json:"ifIndex,omitempty"`
}

// attachments are in the order of programs. Call it where the node's interfaces are.
func (v *decided) attachments() []Attachment {
	var out []Attachment
	for _, m := range v.members {
		a := Attachment{Attach: volume.MarshalAttach([]volume.Attach{{Program: m.program, Hook: m.hook}}), NetNS: m.at.NetNS, IfIndex: m.at.IfIndex}
		if kind := m.hook.Kind(); kind == volume.KindNetfilter || kind == volume.KindSKLookup {
			a.NetNS, _ = netns.Cookie() // 0 where it cannot be told: then nobody attaches it again
		}
		out = append(out, a)
	}
	return out
}

// hook is where the program was attached.
func (a Attachment) hook() (volume.Hook, error) {
	list, err := volume.ParseAttach(a.Attach)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return list[0].Hook, nil
}
