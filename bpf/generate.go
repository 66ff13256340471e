// SPDX-License-Identifier: Apache-2.0

//go:build ignore

// This program compiles every C source below src, which `go generate ./bpf/...` does, and writes objects.sum: the hash of
// each source and the compiler, so that a test can tell without a compiler whether the objects are current.
//
//	go run generate.go [-o DIRECTORY]
//
// A source that needs other flags than the rest says so in a line of its own: "// clang: -target bpfeb".
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
	sources, err := filepath.Glob("*.[ch]")
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
		if name, ok := strings.CutSuffix(source, ".c"); ok {
			compile(source, flags(text), filepath.Join(out, name+".o"))
		}
	}
	if err := os.WriteFile(filepath.Join(out, "objects.sum"), []byte(sum.String()), 0o644); err != nil {
		log.Fatal(err)
	}
}

func compile(source string, flags []string, object string) {
	args := []string{"-O2", "-g", "-Wall", "-Werror", "-target", "bpfel", "-mcpu=v3",
		"-fdebug-compilation-dir", ".", "-ffile-prefix-map=" + workDir() + "=.",
		"-I/usr/include/" + run("clang", "-print-multiarch"), // asm/types.h
	}
	run("clang", append(append(args, flags...), "-c", source, "-o", object)...)
	run("llvm-strip", "-g", object)
}

// flags returns what a source adds to the flags of all; the last of two that contradict each other holds.
func flags(source []byte) []string {
	line := regexp.MustCompile(`(?m)^// clang: (.*)$`).FindSubmatch(source)
	if line == nil {
		return nil
	}
	return strings.Fields(string(line[1]))
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
