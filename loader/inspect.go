// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/podfs/mapjson"
)

// Summary is what an object holds, for people. Its texts come from the object.
type Summary struct {
	License   string            `json:"license"`
	Programs  []ProgramSummary  `json:"programs"`
	Maps      []MapSummary      `json:"maps"`
	Variables []VariableSummary `json:"variables,omitempty"`
}

// ProgramSummary describes one program.
type ProgramSummary struct {
	Name         string   `json:"name"`
	Section      string   `json:"section"`
	Type         string   `json:"type"`
	License      string   `json:"license"`
	Instructions int      `json:"instructions"`
	Helpers      []string `json:"helpers,omitempty"`
	// Attach is an entry of the attribute attach for this program, "" where no hook takes it.
	Attach string `json:"attach,omitempty"`
	// Lacks is what the section leaves open, such as "an interface"; "" where Attach may be left out.
	Lacks string `json:"lacks,omitempty"`
	// TailCalled programs run when others call them and are not attached by default.
	TailCalled bool `json:"tailCalled,omitempty"`
}

// MapSummary describes one map.
type MapSummary struct {
	Name       string `json:"name"` // as the attribute maps names it
	Type       string `json:"type"`
	Key        string `json:"key"`   // C type, or "" without BTF
	Value      string `json:"value"` // C type, or "" without BTF
	KeySize    uint32 `json:"keySize"`
	ValueSize  uint32 `json:"valueSize"`
	MaxEntries uint32 `json:"maxEntries"`
	Flags      uint32 `json:"flags"`
	// Data sections hold global variables and are shown only when they are named.
	Data bool `json:"data,omitempty"`
}

// VariableSummary describes one variable that the attribute variables can set.
type VariableSummary struct {
	Name    string `json:"name"`
	Section string `json:"section"`
	Type    string `json:"type"`
}

// Inspect reads an object, of any machine. Nothing is loaded.
func Inspect(elf []byte) (*Summary, error) {
	spec, err := readSpec(elf)
	if err != nil {
		return nil, err
	}
	s := new(Summary)
	called := tailCalled(spec)
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		prog := spec.Programs[name]
		says := bySection(prog)
		s.License = prog.License // the object has one for all
		s.Programs = append(s.Programs, ProgramSummary{
			Name:         name,
			Section:      prog.SectionName,
			Type:         prog.Type.String(),
			License:      prog.License,
			Instructions: instructions(prog.Instructions),
			Helpers:      helpers(prog.Instructions),
			Attach:       says.example,
			Lacks:        says.lacks,
			TailCalled:   called[name],
		})
	}
	files := map[string]string{}
	for file, name := range fileNames(spec) {
		files[name] = file
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		s.Maps = append(s.Maps, summarise(name, files[name], spec.Maps[name]))
	}
	slices.SortFunc(s.Maps, func(a, b MapSummary) int { return strings.Compare(a.Name, b.Name) })
	for _, v := range variables(spec) {
		s.Variables = append(s.Variables, VariableSummary{Name: v.name, Section: v.section, Type: typeName(v.typ)})
	}
	return s, nil
}

func summarise(name, file string, m *ebpf.MapSpec) MapSummary {
	info := mapInfo(name, m)
	if file == "" {
		file = name // cannot be shown
	}
	return MapSummary{
		Name:       file,
		Type:       mapjson.TypeName(info.Type),
		Key:        typeName(info.Key),
		Value:      typeName(info.Value),
		KeySize:    info.KeySize,
		ValueSize:  info.ValueSize,
		MaxEntries: info.MaxEntries,
		Flags:      info.Flags,
		Data:       isData(name),
	}
}
