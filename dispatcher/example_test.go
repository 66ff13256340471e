// SPDX-License-Identifier: Apache-2.0

package dispatcher_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func Example() {
	ctx := context.Background()
	points := dispatcher.New("/sys/fs/bpf/bpfvol/points", dispatcher.Options{})
	hook := &volume.XDP{Interfaces: []string{"eth0"}, Priority: 500, ProceedOn: []volume.Verdict{"pass"}, Mode: volume.XDPAuto}
	var prog dispatcher.Program // from package loader

	at, err := dispatcher.Resolve(hook)
	if err != nil {
		fmt.Println(err) // interface "eth0" does not exist; there are: ens5, lo
		return
	}
	member := dispatcher.Member{Volume: "csi-3fa9", Program: "count_in", Priority: hook.Priority, ProceedOn: hook.ProceedOn}
	for _, p := range at {
		attached, err := points.Attach(ctx, p, hook.Mode, member, prog)
		if errors.Is(err, dispatcher.ErrFull) {
			fmt.Println(err) // xdp eth0: no place for program "count_in": it needs a slot, since it makes tail calls, and all 32 are taken; ...
			return
		}
		fmt.Println(p, attached.Mode, attached.Way) // xdp eth0 native fused
	}
	fmt.Println(points.Detach(ctx, member.Volume))
}
