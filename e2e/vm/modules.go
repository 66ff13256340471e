// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// wanted are the modules that tests use. One that is built in, or that the kernel does not have, is left out.
var wanted = []string{"veth", "dummy", "sch_ingress", "cls_bpf", "act_bpf", "netkit", "nf_conntrack", "nf_defrag_ipv4", "nf_defrag_ipv6"}

// modules adds the wanted modules of a kernel to the archive, after what they depend on.
func (r *root) modules(kernel string) error {
	files := map[string]string{}
	for _, top := range []string{"lib/modules", "usr/lib/modules"} {
		err := filepath.WalkDir(filepath.Join(kernel, top), func(path string, _ fs.DirEntry, err error) error {
			if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
				files[strings.ReplaceAll(name, "-", "_")] = path
			}
			if os.IsNotExist(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	var loaded []string
	var load func(name string) error
	load = func(name string) error {
		path, ok := files[name]
		if !ok || slices.Contains(loaded, name) {
			return nil
		}
		module, err := readModule(path)
		if err != nil {
			return err
		}
		needs, err := dependencies(module)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, need := range needs {
			if err := load(need); err != nil {
				return err
			}
		}
		r.archive.write(fmt.Sprintf("modules/%02d-%s.ko", len(loaded), name), string(module))
		loaded = append(loaded, name)
		return nil
	}
	for _, name := range wanted {
		if err := load(name); err != nil {
			return err
		}
	}
	return nil
}

// readModule returns a module as the kernel loads it.
func readModule(path string) ([]byte, error) {
	if filepath.Ext(path) != ".xz" {
		return os.ReadFile(path)
	}
	module, err := exec.Command("xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("xz %s: %w", path, err)
	}
	return module, nil
}

// dependencies returns the modules that a module names as those it needs.
func dependencies(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	info := f.Section(".modinfo")
	if info == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	lines, err := info.Data()
	if err != nil {
		return nil, err
	}
	for line := range bytes.SplitSeq(lines, []byte{0}) {
		if names, ok := bytes.CutPrefix(line, []byte("depends=")); ok && len(names) > 0 {
			return strings.Split(strings.ReplaceAll(string(names), "-", "_"), ","), nil
		}
	}
	return nil, nil
}
