// SPDX-License-Identifier: Apache-2.0

// Package panics makes errors of panics. A goroutine that panics ends the daemon, whoever waits for it; so each one that
// reads what others wrote runs under Catch: the call in csi, the pulls in internal/image (TestPanicEndsOnePull).
package panics

import (
	"fmt"
	"runtime/debug"
)

// Error is a panic that was caught. The stack is for the log alone.
type Error struct {
	Value any
	Stack []byte
}

func (e *Error) Error() string {
	return fmt.Sprintf("node plugin: internal error: %v; the plugin's log has the details", e.Value)
}

// Catch runs f and returns its panic as an *Error.
func Catch(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &Error{Value: v, Stack: debug.Stack()}
		}
	}()
	return f()
}
