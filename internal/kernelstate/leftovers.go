// SPDX-License-Identifier: Apache-2.0

package kernelstate

import (
	"context"
	"errors"
	"runtime"
	"time"
)

// settle is how long the kernel may take to free what nobody holds any more: a network namespace and the programs on
// its devices go in a work queue after several RCU grace periods.
const settle = 5 * time.Second

// Leftovers lists what was made since before and is still there after the kernel, and Go's garbage collector, had
// time to free what nobody uses. It returns as soon as nothing is left.
//
// Between looks there is a pause: to look at a map is to open it, and a program array that is opened and closed again
// before the kernel has emptied it leaks (prog_array_map_clear of kernel/bpf/arraymap.c takes a reference for work that
// is queued already).
//
// The collector matters because cilium/ebpf maps data sections into memory: such a map lives on after
// Collection.Close until its memory is collected.
func Leftovers(ctx context.Context, before Snapshot, dirs ...string) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, settle, errSettled)
	defer cancel()
	var left []string
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, errSettled) {
				return left, cause
			}
			return left, nil
		}
		runtime.GC()
		now, err := Take(dirs...)
		if err != nil {
			return nil, err
		}
		if left = now.Since(before); len(left) == 0 {
			return nil, nil
		}
	}
}

var errSettled = errors.New("the kernel had time enough")
