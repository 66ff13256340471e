// SPDX-License-Identifier: Apache-2.0

//go:build ignore

// This program compiles every C source below src, which `go generate ./bpf` does, and writes objects.sum: the hash of
// each source and the compiler, so that a test can tell without a compiler whether the objects are current.
//
//	go run generate.go [-o DIRECTORY]
//
// The same sources, headers and clang give the same bytes on any machine: paths are relative, and what names the
// machine (DWARF) is stripped; BTF stays.
package main

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("generate: ")
	dir := flag.String("o", ".", "write objects below `DIRECTORY`")
	flag.Parse()

	out, err := filepath.Abs(*dir)
	if err != nil {
		log.Fatal(err)
	}
	// Objects name their sources relative to here.
	if err := os.Chdir("src"); err != nil {
		log.Fatal(err)
	}
	sources, err := filepath.Glob("*.bpf.c")
	if err != nil {
		log.Fatal(err)
	}
	sum := new(strings.Builder)
	fmt.Fprintln(sum, "clang", clangVersion())
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintf(sum, "%x  %s\n", sha256.Sum256(text), source)
		compile(source, "bpfel", filepath.Join(out, strings.TrimSuffix(source, ".c")+".o"))
	}
	compile("pass.bpf.c", "bpfeb", filepath.Join(out, "pass_bigendian.bpf.o"))
	if err := os.WriteFile(filepath.Join(out, "objects.sum"), []byte(sum.String()), 0o644); err != nil {
		log.Fatal(err)
	}
}

func compile(source, target, object string) {
	run("clang", "-O2", "-g", "-Wall", "-Werror", "-target", target, "-mcpu=v3",
		"-fdebug-compilation-dir", ".", "-ffile-prefix-map="+workDir()+"=.",
		"-I/usr/include/"+run("clang", "-print-multiarch"), // asm/types.h
		"-c", source, "-o", object)
	run("llvm-strip", "-g", object)
}

func clangVersion() string {
	words := run("clang", "--version")
	version := regexp.MustCompile(`clang version (\S+)`).FindStringSubmatch(words)
	if version == nil {
		log.Fatalf("clang: unknown version %q", words)
	}
	return version[1]
}

func workDir() string {
	dir, err := os.Getwd()
	if err != nil {
		log.Fatal(err)
	}
	return dir
}

func run(command string, args ...string) string {
	cmd := exec.Command(command, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		log.Fatalf("%s: %v; apt install clang llvm libbpf-dev", command, err)
	}
	return strings.TrimSpace(string(out))
}
