// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/loader"
)

type buildOptions struct {
	layoutOptions
	tag    string
	arch   []string
	bpfman bool
	push   bool
}

func newBuild() *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use:     "build FILE.o...",
		GroupID: "image",
		Short:   "Make a bytecode image from BPF objects",
		Long: strings.TrimSpace(`
Build writes an OCI index with one manifest per architecture into the local image cache, tagged with -t.
The architecture is read from the file name as clang and bpf2go users write it (count_x86_bpfel.o,
count_arm64_bpfel.o, count.amd64.o); --arch says it for objects that run anywhere. The same files give the same digest,
which is printed as REF@DIGEST.`),
		Example: "  bpfvol build count.bpf.o -t ghcr.io/acme/count:v1\n" +
			"  bpfvol build count.bpf.o --arch amd64,arm64 -t ghcr.io/acme/count:v1 --push",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{errors.New("build takes FILE.o, got none; see bpfvol build --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.ValidArgsFunction = completeObjects
	cmd.Flags().StringVarP(&o.tag, "tag", "t", "", "`REF` to give it, such as ghcr.io/acme/count:v1; required")
	cmd.Flags().StringSliceVar(&o.arch, "arch", nil, "`ARCH,...` (GOARCH names) that a single FILE.o runs on; default from its name, else this machine's")
	fixed(cmd, "arch", goArchs()...)
	cmd.Flags().BoolVar(&o.bpfman, "bpfman", false, "write bpfman's image format and labels")
	cmd.Flags().BoolVar(&o.push, "push", false, "push after building")
	o.layoutOptions.flags(cmd)
	return cmd
}

func (o *buildOptions) run(ctx context.Context, files []string, stdout, stderr io.Writer) error {
	if o.tag == "" {
		return &usageError{errors.New("build: -t REF is missing; see bpfvol build --help")}
	}
	ref, err := image.ParseReference(o.tag)
	if err != nil {
		return err
	}
	var objects []image.BuildInput
	fileOf := map[string]string{} // by architecture
	labels := map[string]map[string]string{}
	for _, file := range files {
		elf, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		summary, err := loader.Inspect(elf)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		archs, guessed, err := o.archs(file, len(files))
		if err != nil {
			return err
		}
		if guessed {
			fmt.Fprintf(stderr, "note: the name %s has no architecture; taken for %s, as this machine. If it runs anywhere: --arch amd64,arm64\n",
				filepath.Base(file), archs[0])
		}
		words, err := bpfmanLabels(summary)
		if err != nil {
			return err
		}
		for _, arch := range archs {
			if other, taken := fileOf[arch]; taken {
				return &usageError{fmt.Errorf("build: %s and %s are both for %s; an image has one object for each architecture: "+
					"make two images, or put the architecture into the names, like count_arm64_bpfel.o", other, file, arch)}
			}
			fileOf[arch] = file
			objects = append(objects, image.BuildInput{Name: filepath.Base(file), Arch: arch, ELF: elf})
			labels[arch] = words
		}
	}
	store, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	desc, err := store.Build(ctx, ref, objects, image.BuildOptions{BPFMan: o.bpfman, Labels: labels})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s@%s\n", ref.Name(), desc.Digest)
	if o.push {
		_, err = store.Push(ctx, ref, image.PushOptions{Progress: progress(stderr)})
	}
	return o.explain(err, ref)
}

// archNames maps what people write in file names to GOARCH. The first column follows the kernel's and bpf2go's names.
var archNames = map[string]string{
	"x86": "amd64", "x86_64": "amd64", "amd64": "amd64",
	"arm64": "arm64", "aarch64": "arm64",
	"arm": "arm", "riscv": "riscv64", "riscv64": "riscv64", "loongarch": "loong64", "loong64": "loong64",
	"powerpc": "ppc64le", "ppc64le": "ppc64le", "s390": "s390x", "s390x": "s390x", "mips64le": "mips64le",
}

// archs returns the architectures that file is for. Without --arch or a name that says it, that is a guess.
func (o *buildOptions) archs(file string, files int) (archs []string, guessed bool, err error) {
	if len(o.arch) > 0 {
		if files > 1 {
			return nil, false, &usageError{errors.New("build: --arch goes with one FILE.o; with several, name them like count_arm64_bpfel.o")}
		}
		for _, arch := range o.arch {
			if !slices.Contains(goArchs(), arch) {
				return nil, false, &usageError{fmt.Errorf("build: --arch %s: unknown; use %s", arch, strings.Join(goArchs(), ", "))}
			}
		}
		return o.arch, false, nil
	}
	base := strings.TrimSuffix(filepath.Base(file), ".o")
	for _, word := range strings.FieldsFunc(base, func(r rune) bool { return r == '.' || r == '-' }) {
		if arch, ok := archNames[word]; ok {
			return []string{arch}, false, nil
		}
		for _, part := range strings.Split(word, "_") {
			if arch, ok := archNames[part]; ok {
				return []string{arch}, false, nil
			}
		}
	}
	return []string{runtime.GOARCH}, true, nil
}

func goArchs() []string {
	var out []string
	for _, arch := range archNames {
		out = append(out, arch)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func newPush() *cobra.Command {
	var o layoutOptions
	cmd := &cobra.Command{
		Use:     "push IMAGE",
		GroupID: "image",
		Short:   "Send a built image with its signatures to its registry",
		Long: strings.TrimSpace(`
Push sends what the registry lacks, says on standard error what that is, and prints IMAGE@DIGEST.`),
		Example: "  bpfvol push ghcr.io/acme/count:v1",
		Args:    exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := image.ParseReference(args[0])
			if err != nil {
				return err
			}
			store, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			defer store.Close()
			desc, err := store.Push(cmd.Context(), ref, image.PushOptions{Progress: progress(cmd.ErrOrStderr())})
			if err != nil {
				return o.explain(err, ref)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s@%s\n", ref.Name(), desc.Digest)
			return nil
		},
		ValidArgsFunction: completeImage,
	}
	o.flags(cmd)
	return cmd
}

func progress(stderr io.Writer) func(string) {
	return func(what string) { fmt.Fprintln(stderr, what) }
}
