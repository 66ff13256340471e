// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/panics"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// usageError is a mistake in how the command was called.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// hintedError is an error that its caller can do something about here.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }

func hinted(err error, hint string) error { return &hintedError{err, hint} }

// report prints an error with its hints and returns the exit status: 2 for a mistake in the call, else 1.
func report(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "bpfvol: %v\n", err)
	var h *hintedError
	for inner := err; errors.As(inner, &h); inner = h.error {
		fmt.Fprintf(stderr, "  hint: %s\n", h.hint)
	}
	if p, ok := errors.AsType[*panics.Error](err); ok {
		fmt.Fprintf(stderr, "%s", p.Stack)
	}
	if errors.As(err, new(*usageError)) {
		return 2
	}
	return 1
}

// needRoot refuses early what can't work. what completes "it ...".
func needRoot(cmd *cobra.Command, what string) error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("%s: needs root, this is uid %d: it %s", cmd.Name(), uid, what)
	}
	return nil
}

// orRoot says that root may read what this user may not.
func orRoot(err error) error {
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		return hinted(err, "run it as root")
	}
	return err
}

// flagOf names the flag of a volume attribute.
var flagOf = map[string]string{
	volume.KeyImage: "IMAGE", volume.KeyAttach: "--attach", volume.KeyMaps: "--maps", volume.KeyVariables: "--variables",
	volume.KeyMapEntries: "--map-entries", volume.KeyPullPolicy: "--pull-policy",
}

// byFlag names the flag in an error about a volume attribute.
func byFlag(err error) error {
	var a *volume.AttributeError
	if !errors.As(err, &a) {
		return err
	}
	end := strings.IndexAny(a.Key, ".[")
	if end < 0 {
		end = len(a.Key)
	}
	flag, known := flagOf[a.Key[:end]]
	if !known {
		return err
	}
	return &usageError{fmt.Errorf("%s: %s", strings.TrimSpace(flag+" "+strings.TrimPrefix(a.Key[end:], ".")), a.Msg)}
}
