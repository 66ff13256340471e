// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/netns"
	"github.com/bpfvol/bpfvol/internal/pin"
)

// intent is what a change of ours is about to do to an interface. It is pinned before the change's first effect and
// unpinned after its last, so one that is found under our lock is that of a process that died. It says which two
// dispatchers were on the interface, or about to be: whichever is not there now is attached nowhere, and its pins can
// go. Without it nobody could tell them from those of an interface in another network namespace that has the same
// index.
type intent struct {
	Version int            `json:"version"`
	Fresh   ebpf.ProgramID `json:"fresh,omitempty"` // the dispatcher that takes the place of
	Old     ebpf.ProgramID `json:"old,omitempty"`   // this one; 0 for none
}

// intentVersion is raised when an older reader would misunderstand an intent.
const intentVersion = 1

// intentPath is where the intent for an interface is pinned.
func (p Protocol) intentPath(netns uint64, ifindex int) string {
	return filepath.Join(p.dir(), ownDir, fmt.Sprintf("%d-%d", netns, ifindex))
}

var intentName = regexp.MustCompile(`^([0-9]+)-([0-9]+)$`)

// pin writes the intent as JSON in the one entry of a frozen map: a bpffs holds no files.
func (i intent) pin(path string) error {
	i.Version = intentVersion
	text, err := json.Marshal(i)
	if err != nil {
		return err
	}
	m, err := pin.Bytes("bpfvol_intent", text)
	if err != nil {
		return fmt.Errorf("intent: %w", err)
	}
	defer m.Close()
	return m.Pin(path)
}

func readIntent(path string) (intent, error) {
	text, err := pin.ReadBytes(path)
	if err != nil {
		return intent{}, err
	}
	var i intent
	if err := json.Unmarshal(text, &i); err != nil {
		return intent{}, err
	}
	if i.Version != intentVersion {
		return intent{}, fmt.Errorf("it has version %d, and this bpfvol knows %d", i.Version, intentVersion)
	}
	return i, nil
}

// settleAll finishes or undoes the changes in this network namespace whose process died. The caller holds our lock.
func (p Protocol) settleAll(ctx context.Context, ifindex int) error {
	netns, err := netns.Cookie()
	if err != nil {
		return err
	}
	names, err := pin.Names(filepath.Join(p.dir(), ownDir))
	if err != nil {
		return err
	}
	for _, name := range names {
		found := intentName.FindStringSubmatch(name)
		if found == nil || found[1] != strconv.FormatUint(netns, 10) {
			continue
		}
		index, err := strconv.Atoi(found[2])
		if err != nil {
			continue
		}
		if err := p.settle(ctx, p.intentPath(netns, index), index); err != nil && index == ifindex {
			return fmt.Errorf("change of libxdp's dispatcher that was cut short: %w", err)
		}
	}
	return nil
}

func (p Protocol) settle(ctx context.Context, path string, ifindex int) error {
	i, err := readIntent(path)
	if err != nil {
		return err
	}
	at, err := attached(ifindex)
	if errors.Is(err, ErrNoInterface) {
		// Deleted, or moved to another namespace with its program: what is pinned may run there.
		return pin.Remove(path)
	} else if err != nil && !errors.Is(err, ErrForeign) {
		return err
	}
	for _, id := range []ebpf.ProgramID{i.Fresh, i.Old} {
		if id == 0 || id == at.id {
			continue
		}
		dir := p.dispatchDir(ifindex, id)
		if err := p.locked(ctx, func() error { return dismantle(dir, p.reached) }); err != nil {
			return err
		}
	}
	p.reached("settled")
	return pin.Remove(path)
}
