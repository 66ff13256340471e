// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
)

func newCache() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cache",
		GroupID: "image",
		Short:   "Fill the image cache without a registry, look at it, make room in it",
		Long: strings.TrimSpace(`
Cache works on the images that this node has already. For nodes that reach no registry: export an image with its
signatures where there is one, carry the archive over, and import it there. A volume with pullPolicy Never then runs,
its signature checked as always.`),
		Example: "  bpfvol cache export ghcr.io/acme/count:v1 -o count.tar\n  bpfvol cache import count.tar\n  bpfvol cache list",
		Args:    unknownCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCacheImport(), newCacheExport(), newCacheList(), newCachePrune())
	return cmd
}

func newCacheImport() *cobra.Command {
	var o imageOptions
	var as string
	cmd := &cobra.Command{
		Use:   "import PATH|-",
		Short: "Take the images of an OCI layout into the cache",
		Long: strings.TrimSpace(`
Import reads a directory or an archive (- is standard input; gzip and zstd are unpacked) as bpfvol cache export,
oras cp -r --to-oci-layout, cosign save, skopeo copy oci-archive: and docker save (25 or later) write them, with the
signatures that are there. Every byte is compared with its digest; where one differs, nothing is taken in. It prints
the references under which the images are found now.

An archive that does not say what its image is called, such as that of cosign save, needs --as.`),
		Example: "  bpfvol cache import count.tar\n  bpfvol cache import ./layout --as ghcr.io/acme/count:v1",
		Args:    exactArgs("PATH|-"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := image.ImportOptions{Progress: readProgress(cmd.ErrOrStderr())}
			if as != "" {
				var err error
				if opts.As, err = image.ParseReference(as); err != nil {
					return err
				}
			}
			store, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			defer store.Close()
			var images []image.Cached
			if args[0] == "-" {
				images, err = store.ImportArchive(cmd.Context(), cmd.InOrStdin(), opts)
			} else {
				images, err = store.Import(cmd.Context(), args[0], opts)
			}
			if err != nil {
				return err
			}
			for _, i := range images {
				fmt.Fprintf(cmd.OutOrStdout(), "%s@%s signatures: %s\n", i.References()[0], i.Digest, formats(i.Signatures))
			}
			return nil
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&as, "as", "", "`REF` to call the one image of the archive")
	return cmd
}

// readProgress says from time to time how much was read.
func readProgress(stderr io.Writer) func(int64) {
	next := time.Now().Add(patience)
	return func(read int64) {
		if now := time.Now(); now.After(next) {
			next = now.Add(patience)
			fmt.Fprintf(stderr, "read %d MiB ...\n", read>>20)
		}
	}
}

func formats(sigs []image.Format) string {
	if sigs == nil {
		return "not known"
	}
	if len(sigs) == 0 {
		return "none"
	}
	var words []string
	for _, s := range sigs {
		words = append(words, string(s))
	}
	return strings.Join(words, ", ")
}

func newCacheExport() *cobra.Command {
	var o layoutOptions
	var file string
	cmd := &cobra.Command{
		Use:   "export IMAGE",
		Short: "Write an image with its signatures as an archive",
		Long: strings.TrimSpace(`
Export writes an archive of an OCI layout, for bpfvol cache import: the image for every architecture, and its
signatures, from the cache or the registry. The same image and signatures give the same bytes.`),
		Example: "  bpfvol cache export ghcr.io/acme/count:v1 -o count.tar\n  bpfvol cache export ghcr.io/acme/count:v1 | ssh node bpfvol cache import -",
		Args:    exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := image.ParseReference(args[0])
			if err != nil {
				return err
			}
			store, root, err := o.resolve(cmd.Context(), ref, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer store.Close()
			if file == "" {
				return root.Export(cmd.Context(), cmd.OutOrStdout())
			}
			return writeWhole(file, func(w io.Writer) error { return root.Export(cmd.Context(), w) })
		},
		ValidArgsFunction: completeImage,
	}
	o.flags(cmd)
	cmd.Flags().StringVarP(&file, "output", "o", "", "`FILE` to write; default standard output")
	return cmd
}

// writeWhole writes a file that is there as a whole or not at all.
func writeWhole(file string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func newCacheList() *cobra.Command {
	var o layoutOptions
	var out outputOption
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the images of the cache",
		Long: strings.TrimSpace(`
List shows each image: what it is called, its digest, what it takes on disk with its signatures, where it came from
(pulled, built here, imported), and when it was last asked for. Signatures are listed, not checked: that is bpfvol verify.`),
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			defer store.Close()
			images, err := store.List(cmd.Context())
			if err != nil {
				return err
			}
			if images == nil {
				images = []image.Cached{} // [] in JSON
			}
			return out.print(cmd.OutOrStdout(), images, func(w io.Writer) error { return cacheTable(w, images) })
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	o.flags(cmd)
	out.flags(cmd)
	return cmd
}

func cacheTable(w io.Writer, images []image.Cached) error {
	if err := row(w, "IMAGE", "DIGEST", "SIZE", "SIGNATURES", "ORIGIN", "USED"); err != nil {
		return err
	}
	for _, i := range images {
		for _, ref := range i.References() {
			short := i.Digest.Encoded()[:min(12, len(i.Digest.Encoded()))]
			if err := row(w, ref, short, i.Size, formats(i.Signatures), i.Origin, i.Used.Local().Format(time.DateTime)); err != nil {
				return err
			}
		}
	}
	return nil
}

func newCachePrune() *cobra.Command {
	var state stateOptions
	var o imageOptions
	var size sizeFlag
	var all bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that no volume needs",
		Long: strings.TrimSpace(`
Prune removes images that no published volume was made from, the longest unused first, until the cache takes no more than
--size. Images that were built here or imported stay, unless --all is given: there may be no registry to have them from
again. What was asked for in the last three minutes stays, too; a publish may be at work on it.

The daemon does the same by itself (serve --cache-size).`),
		Example: "  bpfvol cache prune --size 100Mi",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			keep, err := state.look().Images()
			if err != nil {
				return orRoot(err)
			}
			store, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			defer store.Close()
			pruned, err := store.Prune(cmd.Context(), image.PruneOptions{Size: int64(size), Keep: keep, All: all})
			for _, i := range pruned.Images {
				for _, ref := range i.References() {
					fmt.Fprintf(cmd.OutOrStdout(), "removed %s %s\n", ref, i.Digest)
				}
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "freed %d bytes; the cache takes %d now\n", pruned.Freed, pruned.Size)
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	state.flags(cmd)
	o.flags(cmd)
	cmd.Flags().Var(&size, "size", "`SIZE` that may stay, such as 500Mi")
	cmd.Flags().BoolVar(&all, "all", false, "also remove what was built here or imported")
	return cmd
}

// sizeFlag is a number of bytes, as Kubernetes writes it: 500Mi, 2Gi.
type sizeFlag int64

func (*sizeFlag) Type() string { return "size" }
func (s *sizeFlag) String() string {
	return resource.NewQuantity(int64(*s), resource.BinarySI).String()
}

func (s *sizeFlag) Set(text string) error {
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return fmt.Errorf("%q is not a size; write 500Mi, for example", text)
	}
	*s = sizeFlag(q.Value())
	return nil
}

// tend keeps the daemon's cache below a size, until ctx ends.
func tend(ctx context.Context, images *image.Store, size sizeFlag, engine *node.Engine) error {
	log := klog.FromContext(ctx)
	images.Tend(ctx, int64(size), engine.Images, func(pruned image.Pruned, err error) {
		if err != nil {
			log.Error(err, "image cache not collected")
			return
		}
		log.Info("image cache collected", "images", len(pruned.Images), "freed", pruned.Freed, "size", pruned.Size)
	})
	return ctx.Err()
}
