// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Load loads an XDP program so that it can be a component of any number of dispatchers. It is loaded against a slot of
// a dispatcher that nothing runs, and so before there is one to change: its caller can pin it first, and know after a
// crash what may be running.
//
// The instructions of spec refer to maps by descriptor. Functions without BTF get some, since the kernel wants it.
// types may be nil; it is what the kernel's BTF is remembered in. spec stays as it is. The caller must Close the
// program.
//
// Errors: ebpf.ErrNotSupported where the kernel refuses any such program, *LoadError where it refuses this one.
func Load(spec *ebpf.ProgramSpec, types *btf.Cache) (*ebpf.Program, error) {
	prog, err := load(spec, types)
	if errors.Is(err, unix.EPERM) {
		if refused := Supported(); refused != nil {
			return nil, refused
		}
	}
	if err != nil {
		return nil, loadError(spec.Name, err)
	}
	return prog, nil
}

// Supported returns nil if this process can load programs as components and attach them, and else the kernel's answer.
func Supported() error {
	nothing := &ebpf.ProgramSpec{Name: "bpfvol_nothing", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, xdpPass), asm.Return(),
	}}
	prog, err := load(nothing, nil)
	if err != nil {
		return refusal(err)
	}
	defer prog.Close()
	place, err := loadTemplate()
	if err != nil {
		return refusal(err)
	}
	defer place.Close()
	l, err := link.AttachFreplace(place, slotName(0), prog)
	if err != nil {
		return refusal(err)
	}
	return l.Close()
}

func load(spec *ebpf.ProgramSpec, types *btf.Cache) (*ebpf.Program, error) {
	place, err := loadTemplate()
	if err != nil {
		return nil, err
	}
	defer place.Close()
	component := spec.Copy()
	component.Instructions = withFuncs(component.Instructions, spec.Name)
	component.Type, component.AttachType = ebpf.Extension, ebpf.AttachNone
	component.AttachTarget, component.AttachTo = place, slotName(0)
	component.Flags &^= hasFrags // it is the dispatcher's to have
	loaded, err := ebpf.NewCollectionWithOptions(
		&ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{spec.Name: component}},
		ebpf.CollectionOptions{
			Cache: types,
			// The statistics bring the verifier's reason without its trace, which can be of any length.
			Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
		})
	if err != nil {
		return nil, err
	}
	defer loaded.Close()
	return loaded.DetachProgram(spec.Name), nil
}

// loadTemplate loads a dispatcher of one slot that is never attached.
func loadTemplate() (*ebpf.Program, error) {
	return ebpf.NewProgram(generate("bpfvol_template", []uint32{0}, 0))
}

// withFuncs makes every function known by BTF, the first as what replaces a slot whatever its source said: its code
// returns a verdict of the context it is given, or the verifier would not have passed it.
func withFuncs(insns asm.Instructions, name string) asm.Instructions {
	insns = slices.Clone(insns)
	if f := btf.FuncMetadata(&insns[0]); f != nil {
		name = f.Name
	}
	if insns[0].Symbol() == "" {
		insns[0] = insns[0].WithSymbol(name)
	}
	insns[0] = btf.WithFuncMetadata(insns[0], xdpFunc(name))
	called := map[string]bool{}
	for i := range insns {
		if insns[i].IsFunctionReference() && insns[i].Reference() != "" { // else it is a distance, and its function is known
			called[insns[i].Reference()] = true
		}
	}
	for i := 1; i < len(insns); i++ {
		symbol := insns[i].Symbol()
		if called[symbol] && btf.FuncMetadata(&insns[i]) == nil {
			// Where BTF and code of an inner function differ, the verifier believes the code.
			insns[i] = btf.WithFuncMetadata(insns[i], &btf.Func{Name: symbol, Linkage: btf.StaticFunc, Type: &btf.FuncProto{
				Return: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
			}})
		}
	}
	return insns
}

// refusal puts the kernel's answer to a program that every kernel with this feature takes in words.
func refusal(err error) error {
	return fmt.Errorf("libxdp's protocol: %w: the kernel refuses freplace programs (%v); use the fused dispatcher", ebpf.ErrNotSupported, bare(err))
}

// loadError tells why the kernel refused a program, in the last words of the verifier.
func loadError(name string, err error) error {
	e := &LoadError{Program: name, cause: bare(err)}
	var rejected *ebpf.VerifierError
	if errors.As(err, &rejected) {
		e.Line = lastWords(rejected.Log)
	}
	if e.Line == "" {
		e.Line = err.Error()
	}
	return e
}

// lastWords is the last line of a verifier's log before its statistics.
func lastWords(log []string) string {
	statistics := []string{"processed ", "verification time ", "stack depth "}
	for _, line := range slices.Backward(log) {
		line = strings.TrimSpace(line)
		isStatistics := slices.ContainsFunc(statistics, func(prefix string) bool { return strings.HasPrefix(line, prefix) })
		if line != "" && !isStatistics {
			return line
		}
	}
	return ""
}

// bare is the kernel's answer without the words that were put around it.
func bare(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
