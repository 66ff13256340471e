// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
)

// Limits of an object. They bound the memory and time that Parse takes on hostile bytes; the largest objects known
// (Cilium's, Tetragon's) stay well below.
const (
	maxELF          = 32 << 20
	maxSections     = 8192
	maxSymtab       = 4 << 20
	maxRelocations  = 8 << 20
	maxBTF          = 8 << 20
	maxTypes        = 1 << 13  // of BTF: see checkTypes
	maxData         = 32 << 20 // all data sections together, .bss included
	maxCode         = 8 << 20  // all programs together: a million instructions
	maxPrograms     = 512
	maxMaps         = 512
	maxLinked       = 8 << 20 // instructions after every program got its own copy of the functions it calls
	maxOverlap      = 4       // times that the symbols of a section may cover it
	maxTypesOfVars  = 1 << 28 // bytes of BTF times variables: each variable has its own copy of its type
	maxVariables    = 8192
	instructionSize = 8
)

// readSpec reads the object. The ELF is checked first for what would make the ELF reader take more memory or time than
// its size justifies.
func readSpec(object []byte) (_ *ebpf.CollectionSpec, err error) {
	defer func() {
		// debug/elf and the BTF decoder have panicked on crafted files before.
		if p := recover(); p != nil {
			err = invalid("object: malformed ELF: %s; compile it again with clang -target bpf", printable(fmt.Sprint(p)))
		}
	}()
	if err := checkELF(object); err != nil {
		return nil, err
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, &problem{text: "object: " + printable(err.Error()), kind: ErrInvalid, cause: err}
	}
	if len(spec.Programs) > maxPrograms {
		return nil, invalid("object: %d programs are over the limit of %d", len(spec.Programs), maxPrograms)
	}
	if len(spec.Maps) > maxMaps {
		return nil, invalid("object: %d maps are over the limit of %d", len(spec.Maps), maxMaps)
	}
	return spec, nil
}

func checkELF(object []byte) error {
	if len(object) > maxELF {
		return invalid("object: %d bytes are over the limit of %d", len(object), maxELF)
	}
	if !bytes.HasPrefix(object, []byte(elf.ELFMAG)) {
		return invalid("object: not an ELF file: it begins with %q", object[:min(len(object), 8)])
	}
	file, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return invalid("object: malformed ELF: %s; compile it again with clang -target bpf", printable(err.Error()))
	}
	if file.Machine != elf.EM_BPF && file.Machine != elf.EM_NONE { // old LLVM writes EM_NONE
		arch := strings.ToLower(strings.TrimPrefix(file.Machine.String(), "EM_"))
		return invalid("object: made for %s, not for BPF; compile it with clang -target bpf", printable(arch))
	}
	if file.Class != elf.ELFCLASS64 {
		return invalid("object: %s; BPF objects are 64-bit: compile it with clang -target bpf", file.Class)
	}
	if n := len(file.Sections); n > maxSections {
		return invalid("object: %d sections are over the limit of %d", n, maxSections)
	}
	sizes, err := checkSections(file)
	if err != nil {
		return err
	}
	if err := checkTypes(file); err != nil {
		return err
	}
	return checkSymbols(file, sizes)
}

// checkOrder refuses an object for machines of the other byte order.
func checkOrder(spec *ebpf.CollectionSpec) error {
	order := elf.ELFDATA2LSB
	if spec.ByteOrder == binary.BigEndian {
		order = elf.ELFDATA2MSB
	}
	if host := hostOrder(); order != host {
		return invalid("object: %s, this node is %s; compile it with clang -target %s",
			endian(order), endian(host), map[elf.Data]string{elf.ELFDATA2LSB: "bpfel", elf.ELFDATA2MSB: "bpfeb"}[host])
	}
	return nil
}

// sizes are what the sections of an object add up to.
type sizes struct{ code, data, btf, relocations uint64 }

func checkSections(file *elf.File) (sizes, error) {
	var sum sizes
	for _, s := range file.Sections {
		if s.Flags&elf.SHF_COMPRESSED != 0 {
			return sum, invalid("object: section %s is compressed; strip it or compile without -gz", quote(s.Name))
		}
		var total *uint64
		var limit uint64
		switch {
		case s.Name == ".BTF" || s.Name == ".BTF.ext":
			total, limit = &sum.btf, maxBTF
		case isData(s.Name):
			total, limit = &sum.data, maxData
		case s.Type == elf.SHT_PROGBITS && s.Flags&elf.SHF_EXECINSTR != 0:
			total, limit = &sum.code, maxCode
		case s.Type == elf.SHT_REL && int(s.Info) < len(file.Sections) && !strings.HasPrefix(file.Sections[s.Info].Name, ".debug"):
			total, limit = &sum.relocations, maxRelocations
		case s.Type == elf.SHT_SYMTAB:
			if s.Size > maxSymtab {
				return sum, invalid("object: symbol table of %d bytes is over the limit of %d", s.Size, maxSymtab)
			}
			continue
		default:
			continue
		}
		if s.Size > limit || *total+s.Size > limit {
			return sum, invalid("object: section %s of %d bytes is over the limit of %d for all of its kind", quote(s.Name), s.Size, limit)
		}
		*total += s.Size
	}
	return sum, nil
}

func checkSymbols(file *elf.File, sum sizes) error {
	symbols, err := file.Symbols()
	if err != nil {
		return invalid("object: malformed symbol table: %s", printable(err.Error()))
	}
	covered := make([]uint64, len(file.Sections))
	var programs, variables uint64
	for _, sym := range symbols {
		if int(sym.Section) >= len(file.Sections) {
			continue // SHN_ABS and its like
		}
		s := file.Sections[sym.Section]
		data, code := isData(s.Name), s.Flags&elf.SHF_EXECINSTR != 0
		if !data && !code || elf.ST_TYPE(sym.Info) == elf.STT_SECTION {
			continue
		}
		if sym.Size > s.Size || covered[sym.Section]+sym.Size > maxOverlap*s.Size {
			return invalid("object: the symbols of section %s overlap", quote(s.Name))
		}
		covered[sym.Section] += sym.Size
		switch {
		case data:
			variables++
		case s.Name != ".text" && elf.ST_TYPE(sym.Info) == elf.STT_FUNC:
			programs++
		}
	}
	switch {
	case variables > maxVariables:
		return invalid("object: %d variables are over the limit of %d", variables, maxVariables)
	case variables*sum.btf > maxTypesOfVars:
		return invalid("object: %d variables with %d bytes of BTF are too many; strip types that no program uses", variables, sum.btf)
	case programs > maxPrograms:
		return invalid("object: %d programs are over the limit of %d", programs, maxPrograms)
	case programs*sum.code/instructionSize > maxLinked:
		return invalid("object: %d programs of together %d instructions are too many for one object; split it", programs, sum.code/instructionSize)
	}
	return nil
}

// isData says whether a section holds global variables, by the names that libbpf goes by.
func isData(section string) bool {
	return section == ".bss" || strings.HasPrefix(section, ".data") || strings.HasPrefix(section, ".rodata")
}

func hostOrder() elf.Data {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return elf.ELFDATA2LSB
	}
	return elf.ELFDATA2MSB
}

func endian(d elf.Data) string {
	switch d {
	case elf.ELFDATA2LSB:
		return "little-endian"
	case elf.ELFDATA2MSB:
		return "big-endian"
	}
	return "of unknown byte order"
}
