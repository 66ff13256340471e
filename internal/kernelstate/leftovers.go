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
// The collector matters because cilium/ebpf maps data sections into memory: such a map lives on after
// Collection.Close until its memory is collected.
func Leftovers(ctx context.Context, before Snapshot, dirs ...string) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, settle, errSettled)
	defer cancel()
	pause := time.Millisecond
	for {
		now, err := Take(dirs...)
		if err != nil {
			return nil, err
		}
		left := now.Since(before)
		if len(left) == 0 {
			return nil, nil
		}
		runtime.GC()
		select {
		case <-time.After(pause):
			pause = min(2*pause, 200*time.Millisecond)
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, errSettled) {
				return left, cause
			}
			return left, nil
		}
	}
}

var errSettled = errors.New("the kernel had time enough")
