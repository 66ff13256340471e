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
)

// file is an ELF file found in a layer.
type file struct {
	name string
	data []byte
}

// elfFiles returns the ELF files of a layer. What the layer is, its bytes say: a raw object, an archive, either of them
// compressed by gzip. A plain "oras push" labels a raw object as tar, so the media type says nothing. Names in an
// archive are for display; nothing is ever written or followed.
func elfFiles(layer []byte, title string, l Limits) ([]file, error) {
	var r io.Reader = bytes.NewReader(layer)
	switch {
	case bytes.HasPrefix(layer, []byte("\x28\xb5\x2f\xfd")):
		return nil, fmt.Errorf("%w: layer is compressed by zstd; compress it by gzip", ErrUnsupported)
	case bytes.HasPrefix(layer, []byte("\x1f\x8b")):
		zr, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("%w: layer is not gzip as it should be", ErrUnsupported)
		}
		r = zr
	}
	// The archive's own headers and padding may take 1 MiB beside the object.
	limited := &io.LimitedReader{R: r, N: l.Object + 1<<20}
	head := make([]byte, len(elf.ELFMAG))
	n, err := io.ReadFull(limited, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, unreadable(err, limited)
	}
	rest := io.MultiReader(bytes.NewReader(head[:n]), limited)
	if string(head) == elf.ELFMAG {
		data, err := io.ReadAll(rest)
		if err != nil || limited.N <= 0 || int64(len(data)) > l.Object {
			return nil, unreadable(err, limited)
		}
		return []file{{name: displayName(title), data: data}}, nil
	}
	return untar(rest, limited, l)
}

func untar(r io.Reader, limited *io.LimitedReader, l Limits) ([]file, error) {
	var files []file
	tr := tar.NewReader(r)
	for entries := 0; ; entries++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && limited.N > 0 {
			return files, nil
		}
		if err != nil {
			return nil, unreadable(err, limited)
		}
		if entries >= l.Entries {
			return nil, fmt.Errorf("%w: layer has more than %d entries", ErrTooLarge, l.Entries)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > l.Object {
			return nil, fmt.Errorf("%w: %s has %d bytes, allowed are %d", ErrTooLarge, quote(h.Name), h.Size, l.Object)
		}
		head := make([]byte, len(elf.ELFMAG))
		if n, err := io.ReadFull(tr, head); n < len(head) || err != nil {
			if limited.N <= 0 {
				return nil, unreadable(err, limited)
			}
			continue // shorter than any object; what is wrong with the archive, Next will say
		}
		if string(head) != elf.ELFMAG {
			continue
		}
		data, err := io.ReadAll(io.MultiReader(bytes.NewReader(head), tr))
		if err != nil {
			return nil, unreadable(err, limited)
		}
		files = append(files, file{name: displayName(h.Name), data: data})
	}
}

// unreadable is the error for a layer that cannot be read to its end.
func unreadable(err error, limited *io.LimitedReader) error {
	if limited.N <= 0 || err == nil {
		return fmt.Errorf("%w: layer is larger than an object may be when unpacked", ErrTooLarge)
	}
	return fmt.Errorf("%w: layer is neither an ELF object nor a whole tar archive", ErrUnsupported)
}

func displayName(s string) string {
	if s == "" {
		return ""
	}
	name := strings.ToValidUTF8(strings.TrimPrefix(path.Clean("/"+s), "/"), "?")
	return name[:min(len(name), 255)]
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
