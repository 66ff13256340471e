// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode"

	"github.com/klauspost/compress/zstd"
)

// file is an ELF file found in a layer.
type file struct {
	name string
	data []byte
}

// tarMagic is where a header says that it is one (POSIX.1-1988, and GNU's all the same).
const tarMagic = 257

// extractor finds ELF files in the layers of one image. What it may unpack and keep is counted over all layers: many
// small bombs are as bad as a large one.
type extractor struct {
	files []file

	limits  Limits
	unpack  int64 // bytes that may still be unpacked
	keep    int64 // bytes of files that may still be kept: a sparse file is larger than what is unpacked
	entries int   // entries of archives that may still come
}

func newExtractor(l Limits) *extractor {
	// Headers and padding of the archives may take 1 MiB beside the object.
	return &extractor{limits: l, unpack: l.Object + 1<<20, keep: l.Object, entries: l.Entries}
}

// maxWindow is how far back a zstd layer may refer: what every decoder has to support (RFC 8878, 3.1.1.1.2), and no
// compressor passes unless told to. A decoder keeps twice that in memory.
const maxWindow = 8 << 20

// layer adds the ELF files of a layer. What the layer is, its bytes say: a raw object, an archive, either of them
// compressed by gzip or zstd. A plain "oras push" labels a raw object as tar, so the media type says nothing. Names in an
// archive are for display; nothing is ever written or followed.
func (x *extractor) layer(b []byte, title string) error {
	var r io.Reader = bytes.NewReader(b)
	switch {
	case isZstd(b):
		zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(uint64(x.limits.Object)+1<<20))
		if err != nil {
			return fmt.Errorf("%w: layer is not zstd as it should be", ErrUnsupported)
		}
		defer zr.Close()
		r = zr
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		zr, err := gzip.NewReader(r)
		if err != nil {
			return fmt.Errorf("%w: layer is not gzip as it should be", ErrUnsupported)
		}
		r = zr
	}
	limited := &io.LimitedReader{R: r, N: x.unpack}
	err := x.unpacked(limited, title)
	if x.unpack = limited.N; x.unpack <= 0 {
		return fmt.Errorf("%w: layers are larger than an object may be when unpacked", ErrTooLarge)
	}
	switch {
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w: layer needs more memory to unpack than it may; compress it by zstd without --long and --ultra", ErrTooLarge)
	case err != nil && !typed(err):
		return fmt.Errorf("%w: layer is not a whole archive", ErrUnsupported)
	}
	return err
}

// isZstd also knows a frame to be skipped, with which some tools begin.
func isZstd(b []byte) bool {
	if len(b) < 4 {
		return false
	}
	magic := binary.LittleEndian.Uint32(b)
	return magic == 0xFD2FB528 || magic&^0xF == 0x184D2A50
}

func (x *extractor) unpacked(r io.Reader, title string) error {
	first, err := io.ReadAll(io.LimitReader(r, 512))
	if err != nil {
		return err
	}
	r = io.MultiReader(bytes.NewReader(first), r)
	switch {
	case bytes.HasPrefix(first, []byte(elf.ELFMAG)):
		return x.add(title, r)
	case len(first) < 512 || string(first[tarMagic:tarMagic+5]) != "ustar":
		return nil // a README beside the object, say
	}
	head := make([]byte, len(elf.ELFMAG))
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if x.entries--; x.entries < 0 {
			return fmt.Errorf("%w: layers have more than %d entries", ErrTooLarge, x.limits.Entries)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if n, _ := io.ReadFull(archive, head); n < len(head) || string(head) != elf.ELFMAG {
			continue // where the archive itself is broken, Next says so
		}
		if err := x.add(h.Name, io.MultiReader(bytes.NewReader(head), archive)); err != nil {
			return err
		}
	}
}

// add keeps a file.
func (x *extractor) add(name string, r io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(r, x.keep+1))
	if err != nil {
		return err
	}
	if x.keep -= int64(len(data)); x.keep < 0 {
		return fmt.Errorf("%w: objects have more than %d bytes", ErrTooLarge, x.limits.Object)
	}
	x.files = append(x.files, file{name: displayName(name), data: data})
	return nil
}

// displayName makes a name of an archive fit to show.
func displayName(s string) string {
	if s == "" {
		return ""
	}
	name := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimPrefix(path.Clean("/"+s), "/"))
	if len(name) > 255 {
		name = strings.ToValidUTF8(name[:255], "")
	}
	return name
}

// pick returns the one BPF object among files. wanted names it where an image has several: bpfman's older label
// io.ebpf.filename.
func pick(files []file, wanted string) (file, error) {
	var objects []file
	other := ""
	for _, f := range files {
		machine, kind, err := header(f.data)
		if err == nil && machine == elf.EM_BPF && kind == elf.ET_REL {
			objects = append(objects, f)
			continue
		}
		other = fmt.Sprintf(": %s is an ELF file for %s", quote(f.name), machine)
		if err != nil {
			other = fmt.Sprintf(": %s is not a whole ELF file", quote(f.name))
		} else if machine == elf.EM_BPF {
			other = fmt.Sprintf(": %s is BPF, but no relocatable object", quote(f.name))
		}
	}
	if len(objects) > 1 && wanted != "" {
		var named []file
		for _, f := range objects {
			if f.name == displayName(wanted) {
				named = append(named, f)
			}
		}
		if len(named) == 1 {
			objects = named
		}
	}
	switch {
	case len(objects) == 0:
		return file{}, fmt.Errorf("%w%s; build the image from the output of clang -target bpf -c", ErrNoObject, other)
	case len(objects) > 1:
		return file{}, fmt.Errorf("%w: it has the objects %s and %s; build one image for each", ErrAmbiguous, quote(objects[0].name), quote(objects[1].name))
	}
	if bigEndian(objects[0].data) != hostBigEndian {
		return file{}, fmt.Errorf("%w: object %s has the byte order of other machines; build it with clang -target %s", ErrPlatform, quote(objects[0].name), hostTarget)
	}
	return objects[0], nil
}

// header reads the first fields of an ELF header in the file's own byte order.
func header(b []byte) (elf.Machine, elf.Type, error) {
	if len(b) < 64 || string(b[:4]) != elf.ELFMAG || elf.Class(b[elf.EI_CLASS]) != elf.ELFCLASS64 {
		if len(b) >= 20 && elf.Class(b[elf.EI_CLASS]) == elf.ELFCLASS32 {
			return elf.Machine(order(b).Uint16(b[18:])), elf.Type(order(b).Uint16(b[16:])), nil
		}
		return 0, 0, io.ErrUnexpectedEOF
	}
	return elf.Machine(order(b).Uint16(b[18:])), elf.Type(order(b).Uint16(b[16:])), nil
}

func order(b []byte) binary.ByteOrder {
	if bigEndian(b) {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

func bigEndian(b []byte) bool { return elf.Data(b[elf.EI_DATA]) == elf.ELFDATA2MSB }

var (
	hostBigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1
	hostTarget    = map[bool]string{true: "bpfeb", false: "bpfel"}[hostBigEndian]
)
