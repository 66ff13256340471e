// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// provisionBinary does the work of `bpfvol provision`. It lies beside bpfvol.
const provisionBinary = "bpfvol-provision"

func newProvision() *cobra.Command {
	return &cobra.Command{
		Use:     "provision",
		GroupID: "cluster",
		Short:   "Make PersistentVolumes for claims of StorageClasses",
		// All of it, --help and completion too, is the other binary's.
		DisableFlagParsing: true,
		PersistentPreRunE:  func(*cobra.Command, []string) error { return nil },
		RunE: func(_ *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			path := filepath.Join(filepath.Dir(self), provisionBinary)
			err = syscall.Exec(path, append([]string{provisionBinary}, args...), os.Environ())
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("provision: %s is not beside bpfvol in %s; install both of one release", provisionBinary, filepath.Dir(self))
			}
			return fmt.Errorf("provision: %s: %w", path, err)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
}
