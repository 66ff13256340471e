// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// tools are the programs that tests run. They are this machine's, with the libraries they load.
var tools = []string{"sh", "cat", "true", "sleep", "nsenter", "ip", "tc", "ping", "clang", "bpftool", "xdp-loader", "xdpdump", "secilc"}

// files are what the tools and the tests read, as far as this machine has it: patterns.
var files = []string{
	"/usr/include/bpf", "/usr/include/linux", "/usr/include/asm-generic", "/usr/include/*-linux-gnu/asm",
	"/usr/lib/*-linux-gnu/bpf", // xdp-tools' objects
	"/etc/iproute2",
}

// root is the file system of the virtual machine: this machine's tools at the places where they are here, a test binary
// for each package and the package's own files, the modules of a kernel, and init.
type root struct {
	archive archive
	done    map[string]bool // names that are in it
}

// buildRoot writes the file system as an archive.
func buildRoot(file, kernel string, b built) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	r := &root{archive: archive{w: w}, done: map[string]bool{".": true}}

	for _, dir := range []string{"dev", "proc", "root", "run", "sys", "tmp", "var/tmp"} {
		r.dir(dir)
	}
	r.archive.copy("init", b.init)
	r.dir("etc")
	r.archive.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")
	r.archive.write("etc/group", "root:x:0:\nnogroup:x:65534:\n")
	r.archive.write("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
	configs, err := filepath.Glob(filepath.Join(kernel, "boot/config-*")) // where cilium/ebpf looks for __kconfig
	if err != nil {
		return err
	}
	r.dir("boot")
	for _, config := range configs {
		r.archive.copy(path.Join("boot", filepath.Base(config)), config)
	}
	r.dir("modules")
	if err := r.modules(kernel); err != nil {
		return err
	}
	if err := r.tools(); err != nil {
		return err
	}
	if err := r.module(b); err != nil {
		return err
	}
	if err := r.archive.end(); err != nil {
		return err
	}
	return w.Flush()
}

// tools adds programs and files of this machine.
func (r *root) tools() error {
	for _, name := range tools {
		program, err := exec.LookPath(name)
		if err != nil {
			fmt.Printf("vm: no %s here: tests that run it skip or fail\n", name)
			continue
		}
		if err := r.add(program); err != nil {
			return err
		}
		libraries, err := libraries(program)
		if err != nil {
			return err
		}
		for _, library := range libraries {
			if err := r.add(library); err != nil {
				return err
			}
		}
	}
	for _, pattern := range files {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range matches {
			if err := r.add(file); err != nil {
				return err
			}
		}
	}
	return nil
}

// module adds the packages' directories below /src, the test binaries, and other modules' files that tests look for.
func (r *root) module(b built) error {
	r.dir("tests")
	var lines strings.Builder
	for i, p := range b.packages {
		err := filepath.WalkDir(p.dir, func(file string, d fs.DirEntry, err error) error {
			name := path.Join("src", filepath.ToSlash(file))
			if err == nil && d.Type().IsRegular() && !r.done[name] { // packages may be nested
				r.done[name] = true
				r.dir(path.Dir(name))
				r.archive.copy(name, file)
			}
			return err
		})
		if err != nil {
			return err
		}
		binary := fmt.Sprintf("tests/%02d.test", i)
		r.archive.copy(binary, p.binary)
		fmt.Fprintf(&lines, "%s /%s /%s\n", p.path, binary, path.Join("src", p.dir))
	}
	r.archive.write("packages", lines.String())
	r.archive.write("pattern", b.run)

	// Tests look for other people's objects where the module cache has them.
	const module = "github.com/cilium/ebpf"
	dir, err := output("go", "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return err
	}
	dir = strings.TrimSpace(dir)
	for _, below := range []string{"testdata", "examples"} {
		if err := r.addTree(filepath.Join(dir, below)); err != nil {
			return err
		}
	}
	r.dir("usr/local/bin")
	r.archive.script("usr/local/bin/go", `#!/bin/sh
# All of Go that tests need here.
[ "$*" = "list -m -f {{.Dir}} `+module+`" ] && echo "`+dir+`" && exit
echo "go: not in the virtual machine: $*" >&2
exit 1
`)
	return nil
}

// add copies what is at a path of this machine to the same path, symbolic links as such and with what they lead to.
func (r *root) add(file string) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(file))
	if err != nil {
		return err
	}
	// The names of /lib and so on, by which programs find their loader.
	if top := strings.SplitN(file, "/", 3)[1]; !r.done[top] {
		if target, err := os.Readlink("/" + top); err == nil {
			r.archive.symlink(top, target)
			r.done[top] = true
		}
	}
	file = filepath.Join(dir, filepath.Base(file))
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return r.addTree(file)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		if !r.begin(file) {
			return nil
		}
		r.archive.symlink(file[1:], target)
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		return r.add(target)
	case info.Mode().IsRegular() && r.begin(file):
		r.archive.copy(file[1:], file)
	}
	return nil
}

func (r *root) addTree(dir string) error {
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return r.add(file)
	})
}

// begin reports whether a path is new, and makes the directories above it.
func (r *root) begin(file string) bool {
	if r.done[file[1:]] {
		return false
	}
	r.done[file[1:]] = true
	r.dir(path.Dir(file[1:]))
	return true
}

// dir adds a directory and those above it.
func (r *root) dir(name string) {
	if r.done[name] {
		return
	}
	r.done[name] = true
	r.dir(path.Dir(name))
	r.archive.dir(name)
}

// library is how ldd names one: "libc.so.6 => /lib/.../libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)".
var library = regexp.MustCompile(`(?m)(/\S+) \(0x`)

// libraries returns the shared libraries of a program.
func libraries(program string) (paths []string, err error) {
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("not a dynamic executable")) {
			return nil, nil
		}
		return nil, fmt.Errorf("ldd %s: %w: %s", program, err, out)
	}
	for _, match := range library.FindAllSubmatch(out, -1) {
		paths = append(paths, string(match[1]))
	}
	return paths, nil
}

// output runs a command and returns what it prints.
func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), nil
}
