// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/flagenv"
	"github.com/bpfvol/bpfvol/internal/podfs"
)

// fixed completes a flag from the words that it takes.
func fixed(cmd *cobra.Command, flag string, words ...string) {
	// The error is that of a flag which does not exist.
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}

// completeImage offers nothing for IMAGE: registries are not asked while somebody types.
func completeImage(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeImageDir offers directories for the second argument of IMAGE DIR.
func completeImageDir(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func completeObjects(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"o"}, cobra.ShellCompDirectiveFilterFileExt
}

// completeDump offers the maps of DIR.
func completeDump(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return nil, cobra.ShellCompDirectiveFilterDirs
	case 1:
		dir, err := filepath.Abs(args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		v, err := podfs.Read(dir)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return mapNames(v), cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeLocal offers the directories that were published here.
func (o *stateOptions) completeLocal(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if err := flagenv.Set(cmd.Flags()); err != nil { // completion does not get that far
		return nil, cobra.ShellCompDirectiveError
	}
	volumes, err := o.look().List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	var dirs []string
	for _, v := range volumes {
		for _, t := range v.Targets {
			if v.VolumeID == localID(t.Path) {
				dirs = append(dirs, t.Path)
			}
		}
	}
	return dirs, cobra.ShellCompDirectiveNoFileComp
}
