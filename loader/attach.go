// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// attachments returns where programs attach: as asked, or as their sections say. The programs of spec are changed to
// what their hooks need.
func attachments(spec *ebpf.CollectionSpec, asked []volume.Attach) ([]volume.Attach, error) {
	if len(asked) == 0 {
		var err error
		if asked, err = defaults(spec); err != nil {
			return nil, err
		}
	}
	fitted := map[string]loadAs{}
	attach := make([]volume.Attach, 0, len(asked))
	for _, a := range asked {
		prog := spec.Programs[a.Program]
		if prog == nil {
			return nil, missing("program", a.Program, slices.Sorted(maps.Keys(spec.Programs)))
		}
		if !isName(a.Program) {
			return nil, invalid("program %s: the name cannot be a file name; use letters, digits and _", quote(a.Program))
		}
		if prog.Type == ebpf.UnspecifiedProgram {
			prog.Type = typeOf[a.Hook.Kind()]
		}
		h, as, err := fit(prog, a.Hook)
		if err != nil {
			return nil, err
		}
		if was, ok := fitted[a.Program]; ok && was != as {
			return nil, invalid("program %s: two of its attachments need it to be loaded differently (%s, %s); give each a program of its own",
				quote(a.Program), a.Hook, firstHook(attach, a.Program))
		}
		fitted[a.Program] = as
		attach = append(attach, volume.Attach{Program: a.Program, Hook: h})
	}
	for name, as := range fitted {
		spec.Programs[name].AttachType, spec.Programs[name].AttachTo = as.attach, as.attachTo
	}
	return attach, nil
}

// typeOf is the type of a program whose section is a name of its own (SEC("my_filter")): that of the hook.
var typeOf = map[volume.Kind]ebpf.ProgramType{
	volume.KindXDP:           ebpf.XDP,
	volume.KindTC:            ebpf.SchedCLS,
	volume.KindNetkit:        ebpf.SchedCLS,
	volume.KindTracepoint:    ebpf.TracePoint,
	volume.KindRawTracepoint: ebpf.RawTracepoint,
	volume.KindKprobe:        ebpf.Kprobe,
	volume.KindKretprobe:     ebpf.Kprobe,
	volume.KindUprobe:        ebpf.Kprobe,
	volume.KindUretprobe:     ebpf.Kprobe,
	volume.KindPerfEvent:     ebpf.PerfEvent,
	volume.KindNetfilter:     ebpf.Netfilter,
	volume.KindSKLookup:      ebpf.SkLookup,
}

// firstHook is where the program attaches first.
func firstHook(attach []volume.Attach, program string) volume.Hook {
	for _, a := range attach {
		if a.Program == program {
			return a.Hook
		}
	}
	return nil
}

// defaults attaches every program where its section says. Left out are programs that others tail-call and those whose
// section begins with "?", which libbpf does not load unless asked either.
func defaults(spec *ebpf.CollectionSpec) ([]volume.Attach, error) {
	called := tailCalled(spec)
	var attach []volume.Attach
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		prog := spec.Programs[name]
		if called[name] || strings.HasPrefix(prog.SectionName, "?") {
			continue
		}
		says := bySection(prog)
		switch {
		case !isName(name):
			return nil, invalid("program %s: the name cannot be a file name; use letters, digits and _", quote(name))
		case !utf8.ValidString(prog.SectionName):
			return nil, invalid("program %s: section %s is no text", quote(name), quote(prog.SectionName))
		case says.example == "":
			return nil, invalid("program %s: no hook takes programs of section %s; write attach with the programs that you want",
				quote(name), quote(prog.SectionName))
		case says.hook == nil:
			return nil, invalid("program %s: section %s needs %s; write attach: [%s], with an entry for each program that you want",
				quote(name), quote(prog.SectionName), says.lacks, says.example)
		}
		attach = append(attach, volume.Attach{Program: name, Hook: says.hook})
	}
	if len(attach) == 0 {
		if len(spec.Programs) == 0 {
			return nil, invalid("object: no program in it")
		}
		return nil, invalid("object: no program attaches by itself; write attach with some of: %s", list(slices.Sorted(maps.Keys(spec.Programs))))
	}
	// What sections say is as strange as what users write: the same rules, and the same defaults, hold for both.
	checked, err := volume.ParseAttach(volume.MarshalAttach(attach))
	if err != nil {
		return nil, invalid("object: its ELF sections say where to attach, but: %s; write attach", printable(err.Error()))
	}
	return checked, nil
}

// tailCalled returns the programs that stand in a program array of the object.
func tailCalled(spec *ebpf.CollectionSpec) map[string]bool {
	called := map[string]bool{}
	for _, m := range spec.Maps {
		if m.Type != ebpf.ProgramArray {
			continue
		}
		for _, kv := range m.Contents {
			if name, ok := kv.Value.(string); ok {
				called[name] = true
			}
		}
	}
	return called
}
