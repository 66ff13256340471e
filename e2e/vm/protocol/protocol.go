// SPDX-License-Identifier: Apache-2.0

// Package protocol is what the virtual machine of e2e/vm writes to its second serial port: for each
// package a line that starts it, the output of its test binary, and a line with its exit
// status; and a last line. A machine that dies leaves the rest out, which is how the host knows.
package protocol

import (
	"strconv"
	"strings"
	"time"
)

// Timeout is how long the tests of one package may take. The machine is emulated, ten times slower than a real one.
const Timeout = 25 * time.Minute

// mark begins a line of the protocol. No test writes it.
const mark = "\x05bpfvol-vm "

// Done is the last line.
const Done = mark + "done"

// Start is the line before the output of a package.
func Start(pkg string) string { return mark + "start " + pkg }

// End is the line after the output of a package.
func End(status int) string { return mark + "end " + strconv.Itoa(status) }

// Line takes a line apart: its verb is "start", "end", "done", or "" for output of a test.
func Line(line string) (verb, argument string) {
	rest, ok := strings.CutPrefix(line, mark)
	if !ok {
		return "", ""
	}
	verb, argument, _ = strings.Cut(strings.TrimSpace(rest), " ")
	return verb, argument
}
