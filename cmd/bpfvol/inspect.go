// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/loader"
)

// inspection is what inspect found out. Nothing in it has been verified.
type inspection struct {
	Image      string         `json:"image,omitempty"`
	Digest     string         `json:"digest,omitempty"`
	Object     string         `json:"object"`
	Signatures []string       `json:"signatures,omitzero"` // of an image
	Summary    loader.Summary `json:"summary"`
	// Snippet is a pod's volume, ready to be completed.
	Snippet string `json:"snippet"`
}

func newInspect() *cobra.Command {
	var o layoutOptions
	var out outputOption
	cmd := &cobra.Command{
		Use:     "inspect IMAGE|FILE.o",
		GroupID: "image",
		Short:   "Show an image's programs, maps and signatures, and the volume to write for it",
		Long: strings.TrimSpace(`
Inspect reads an image, or a BPF object file, without loading anything. Signatures are listed, not checked:
that is bpfvol verify.`),
		Example: "  bpfvol inspect ghcr.io/acme/count:v1\n  bpfvol inspect count.bpf.o",
		Args:    exactArgs("IMAGE|FILE.o"),
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := inspect(cmd.Context(), &o, args[0], cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), found, func(w io.Writer) error { return found.table(w) })
		},
	}
	o.flags(cmd)
	out.flags(cmd)
	return cmd
}

func inspect(ctx context.Context, o *layoutOptions, arg string, stderr io.Writer) (*inspection, error) {
	elf, err := os.ReadFile(arg)
	if err == nil {
		return summarise(&inspection{Object: arg}, "REGISTRY/NAME:TAG", elf)
	}
	if !errors.Is(err, fs.ErrNotExist) || strings.HasSuffix(arg, ".o") || strings.HasPrefix(arg, ".") || filepath.IsAbs(arg) {
		return nil, err // no image is called like that
	}
	ref, err := image.ParseReference(arg)
	if err != nil {
		return nil, fmt.Errorf("%w; and there is no file of that name", err)
	}
	store, root, err := o.resolve(ctx, ref, stderr)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	object, err := root.Object(ctx)
	if err != nil {
		return nil, err
	}
	signatures, err := root.Signatures(ctx, false)
	if err != nil {
		return nil, err
	}
	found := &inspection{Image: ref.String(), Digest: root.Digest.String(), Object: object.Name, Signatures: []string{}}
	for _, s := range signatures {
		found.Signatures = append(found.Signatures, string(s.Format))
	}
	return summarise(found, ref.Name()+"@"+root.Digest.String(), object.ELF)
}

func summarise(found *inspection, ref string, elf []byte) (*inspection, error) {
	summary, err := loader.Inspect(elf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", found.Object, err)
	}
	found.Summary, found.Snippet = *summary, snippet(ref, summary)
	return found, nil
}

// snippet is the volume a pod would write. Programs that others call need no attachment.
func snippet(ref string, s *loader.Summary) string {
	var b strings.Builder
	b.WriteString("volumes:\n- name: bpf\n  csi:\n    driver: csi.bpfvol.io\n    volumeAttributes:\n      image: " + ref + "\n")
	var attach []string
	for _, p := range s.Programs {
		if p.Attach != "" && !p.TailCalled {
			attach = append(attach, p.Attach)
		}
	}
	if len(attach) == 0 {
		return b.String()
	}
	b.WriteString("      attach: |\n")
	for _, entry := range attach {
		b.WriteString("        - " + printable(entry) + "\n")
	}
	return b.String()
}

func (f *inspection) table(w io.Writer) error {
	if f.Image != "" {
		signed := "none"
		if len(f.Signatures) > 0 {
			signed = strings.Join(f.Signatures, ", ") + " (not checked here)"
		}
		fmt.Fprintf(w, "image       %s\ndigest      %s\nsignatures  %s\n", f.Image, f.Digest, signed)
	}
	fmt.Fprintf(w, "object      %s, license %s\n\n", printable(f.Object), printable(f.Summary.License))
	if err := row(w, "PROGRAM", "SECTION", "TYPE", "INSTRUCTIONS"); err != nil {
		return err
	}
	for _, p := range f.Summary.Programs {
		if err := row(w, p.Name, p.Section, p.Type, p.Instructions); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	if err := row(w, "MAP", "TYPE", "KEY", "VALUE", "ENTRIES", "FLAGS"); err != nil {
		return err
	}
	for _, m := range f.Summary.Maps {
		if err := row(w, m.Name, m.Type, sized(m.Key, m.KeySize), sized(m.Value, m.ValueSize), m.MaxEntries, fmt.Sprintf("%#x", m.Flags)); err != nil {
			return err
		}
	}
	if len(f.Summary.Variables) > 0 {
		fmt.Fprintln(w)
		if err := row(w, "VARIABLE", "SECTION", "TYPE"); err != nil {
			return err
		}
		for _, v := range f.Summary.Variables {
			if err := row(w, v.Name, v.Section, v.Type); err != nil {
				return err
			}
		}
	}
	if _, err := fmt.Fprintf(w, "\n%s", f.Snippet); err != nil {
		return err
	}
	return f.notes(w)
}

// notes says what a person has to add to the snippet.
func (f *inspection) notes(w io.Writer) error {
	var incomplete, notes []string
	for _, p := range f.Summary.Programs {
		if _, err := volume.ParseAttach(p.Attach); err != nil || p.TailCalled {
			continue // not in the snippet
		}
		if p.Lacks != "" {
			incomplete = append(incomplete, p.Name+" "+p.Lacks)
		}
	}
	if len(incomplete) > 0 {
		notes = append(notes, "sections do not say everything, so some of this is an example. Give "+strings.Join(incomplete, ", "))
	}
	shown := slices.ContainsFunc(f.Summary.Maps, func(m loader.MapSummary) bool { return !m.Data })
	if !shown && len(f.Summary.Maps) > 0 {
		notes = append(notes, "every map is a data section; to show one write `maps: "+f.Summary.Maps[0].Name+"`")
	}
	for i, note := range notes {
		if i == 0 {
			fmt.Fprintln(w)
		}
		if _, err := fmt.Fprintf(w, "note: %s\n", printable(note)); err != nil {
			return err
		}
	}
	return nil
}

// sized is a C type, or without BTF the number of bytes. Ring buffers and the like have none.
func sized(ctype string, size uint32) string {
	if ctype == "" && size == 0 {
		return "-"
	}
	if ctype == "" {
		return fmt.Sprintf("%d bytes", size)
	}
	return ctype
}
