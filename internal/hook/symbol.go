// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
)

// Limits on a binary, which may be any tenant's file. Its tables are read piece by piece and never held: those of
// Chromium have hundreds of megabytes.
const (
	maxELFHeaders  = 4 << 20   // bytes of headers and section names that are read to find the tables
	maxSymbolBytes = 512 << 20 // of one table, which is how long a search may take
	maxCode        = 64        // segments with code; linkers make one or two
	maxNamesakes   = 1 << 16   // times that a name may stand in a string table
	maxSuggested   = 1 << 16   // functions that a mistyped name is compared with; bpfvol itself has half of that
	maxSymbolName  = 128       // bytes of one of those
)

// function is where in a file a function's code is.
type function struct{ offset, size uint64 }

// binaryFile is an executable or shared library.
type binaryFile struct {
	io.ReaderAt
	*elf.File
	code []elf.ProgHeader // segments
}

// findFunction looks a function up in the symbol tables of an executable or shared library. Functions of other libraries,
// which have no code here, and those that choose their code at start (IFUNC) are not among them. Where it is not there the
// functions that are, or some of them, are known.
func findFunction(file io.ReaderAt, name string) (f function, found bool, known []string, err error) {
	// debug/elf has panicked on malformed files.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed ELF: %v", r)
		}
	}()
	b, err := openBinary(file)
	if err != nil {
		return f, false, nil, err
	}
	for _, kind := range []elf.SectionType{elf.SHT_SYMTAB, elf.SHT_DYNSYM} { // the first has local functions, too
		if f, found, err = b.find(kind, name); found || err != nil {
			return f, found, nil, err
		}
	}
	known, err = b.names()
	return f, false, known, err
}

func openBinary(file io.ReaderAt) (*binaryFile, error) {
	f, err := elf.NewFile(&readLimit{file, maxELFHeaders})
	var format *elf.FormatError
	switch {
	case errors.As(err, &format):
		return nil, errors.New("not an ELF file") // its own words would quote the file
	case err != nil:
		return nil, err
	case f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN:
		return nil, fmt.Errorf("ELF file is %s, neither an executable nor a shared library", f.Type)
	}
	b := &binaryFile{ReaderAt: file, File: f}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 {
			b.code = append(b.code, p.ProgHeader)
		}
	}
	if n := len(b.code); n > maxCode {
		return nil, fmt.Errorf("%d segments with code are over the limit of %d", n, maxCode)
	}
	return b, nil
}

// readLimit is a file of which so many bytes may be read.
type readLimit struct {
	io.ReaderAt
	left int
}

func (r *readLimit) ReadAt(b []byte, off int64) (int, error) {
	if r.left -= len(b); r.left < 0 {
		return 0, fmt.Errorf("its headers are over the limit of %d bytes", maxELFHeaders)
	}
	return r.ReaderAt.ReadAt(b, off)
}

// table returns a symbol table and its strings; nothing where there is none.
func (b *binaryFile) table(kind elf.SectionType) (symbols, names *io.SectionReader, err error) {
	s := b.SectionByType(kind)
	if s == nil || s.Type == elf.SHT_NOBITS {
		return nil, nil, nil
	}
	if s.Link == 0 || int(s.Link) >= len(b.Sections) {
		return nil, nil, errors.New("malformed ELF: a symbol table without names")
	}
	strings := b.Sections[s.Link]
	if size := max(s.FileSize, strings.FileSize); size > maxSymbolBytes {
		return nil, nil, fmt.Errorf("a symbol table of %d bytes is over the limit of %d", size, maxSymbolBytes)
	}
	if s.Flags&elf.SHF_COMPRESSED != 0 || strings.Type != elf.SHT_STRTAB || strings.Flags&elf.SHF_COMPRESSED != 0 {
		return nil, nil, errors.New("malformed ELF: a symbol table that cannot be read")
	}
	part := func(s *elf.Section) *io.SectionReader {
		return io.NewSectionReader(b, int64(s.Offset), int64(s.FileSize))
	}
	return part(s), part(strings), nil
}

// find looks a name up in one table.
func (b *binaryFile) find(kind elf.SectionType, name string) (f function, found bool, err error) {
	symbols, names, err := b.table(kind)
	if symbols == nil || err != nil {
		return f, false, err
	}
	at, err := occurrences(names, append([]byte(name), 0))
	if err != nil || len(at) == 0 {
		return f, false, err
	}
	err = b.functions(symbols, func(s elf.Sym64) bool { return at[s.Name] }, func(_ elf.Sym64, place function) bool {
		f, found = place, true
		return false
	})
	return f, found, err
}

// occurrences are the offsets at which text stands in r.
func occurrences(r io.ReaderAt, text []byte) (map[uint32]bool, error) {
	at := map[uint32]bool{}
	chunk := make([]byte, 64<<10+len(text)-1)
	for base := int64(0); ; {
		n, err := r.ReadAt(chunk, base)
		for i := 0; ; i++ {
			next := bytes.Index(chunk[i:n], text)
			if next < 0 {
				break
			}
			i += next
			if at[uint32(base)+uint32(i)] = true; len(at) > maxNamesakes {
				return nil, fmt.Errorf("the name stands in it more than %d times", maxNamesakes)
			}
		}
		if errors.Is(err, io.EOF) {
			return at, nil
		}
		if err != nil {
			return nil, err
		}
		base += int64(n - len(text) + 1)
	}
}

// functions calls yield for each wanted function that has code here, until that returns false.
func (b *binaryFile) functions(symbols *io.SectionReader, wanted func(elf.Sym64) bool, yield func(elf.Sym64, function) bool) error {
	r := bufio.NewReaderSize(symbols, 64<<10)
	raw := make([]byte, elf.Sym64Size)
	if b.Class != elf.ELFCLASS64 {
		raw = raw[:elf.Sym32Size]
	}
	for {
		_, err := io.ReadFull(r, raw)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("malformed symbol table: %w", err)
		}
		s := b.symbol(raw)
		if elf.ST_TYPE(s.Info) != elf.STT_FUNC || elf.SectionIndex(s.Shndx) == elf.SHN_UNDEF || !wanted(s) {
			continue
		}
		// Symbols hold virtual addresses, in position independent code from 0 on. The kernel wants the place in the
		// file: the segment that is mapped there says how far apart the two are.
		for _, p := range b.code {
			if s.Value >= p.Vaddr && s.Value-p.Vaddr < p.Filesz {
				if !yield(s, function{offset: s.Value - p.Vaddr + p.Off, size: s.Size}) {
					return nil
				}
				break
			}
		}
	}
}

// symbol decodes one symbol, of either class.
func (b *binaryFile) symbol(raw []byte) elf.Sym64 {
	order := b.ByteOrder
	s := elf.Sym64{Name: order.Uint32(raw)}
	if b.Class == elf.ELFCLASS64 {
		s.Info, s.Shndx, s.Value, s.Size = raw[4], order.Uint16(raw[6:]), order.Uint64(raw[8:]), order.Uint64(raw[16:])
		return s
	}
	s.Info, s.Shndx, s.Value, s.Size = raw[12], order.Uint16(raw[14:]), uint64(order.Uint32(raw[4:])), uint64(order.Uint32(raw[8:]))
	return s
}

// names lists functions, up to a limit.
func (b *binaryFile) names() ([]string, error) {
	seen := map[string]bool{}
	var all []string
	for _, kind := range []elf.SectionType{elf.SHT_DYNSYM, elf.SHT_SYMTAB} {
		symbols, names, err := b.table(kind)
		if err != nil {
			return nil, err
		}
		if symbols == nil {
			continue
		}
		every := func(elf.Sym64) bool { return true }
		err = b.functions(symbols, every, func(s elf.Sym64, _ function) bool {
			var text [maxSymbolName]byte
			n, _ := names.ReadAt(text[:], int64(s.Name))
			name, _, whole := bytes.Cut(text[:n], []byte{0})
			if whole && len(name) > 0 && !seen[string(name)] {
				seen[string(name)] = true
				all = append(all, string(name))
			}
			return len(all) < maxSuggested
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
