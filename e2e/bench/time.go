// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clocks says how long f takes: by the clock on the wall, and in processor time of the calling thread, in the kernel too.
// The latter does not grow when others keep the machine busy. The caller must be locked to its thread.
func clocks(f func() error) (wall, processor time.Duration, err error) {
	ran, err := processorTime()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	if err := f(); err != nil {
		return 0, 0, err
	}
	wall = time.Since(start)
	now, err := processorTime()
	return wall, now - ran, err
}

// processorTime is how long the calling thread has run.
func processorTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}
