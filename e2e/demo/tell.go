// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/bpfvol/bpfvol/e2e/stack"
)

var steps int

// step begins a chapter.
func step(format string, args ...any) {
	steps++
	fmt.Printf("\n%d. %s\n", steps, fmt.Sprintf(format, args...))
}

func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// show prints what a command or a file says.
func show(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Printf("     %s\n", strings.TrimRight(line, "\n"))
	}
}

// demoNode is a stack whose commands are shown as they run.
type demoNode struct{ *stack.Stack }

func (n demoNode) show(ctx context.Context, args ...string) error {
	say("$ bpfvol %s", strings.ReplaceAll(strings.Join(args, " "), n.Dir+"/", ""))
	out, err := n.CLI(ctx, args...)
	show(out)
	return err
}

func output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd.Path, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
