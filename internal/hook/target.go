// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"reflect"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// CheckTarget tells why no program can be loaded for a hook on this kernel: a *MissingError, or an error that wraps
// ErrUnfit. It is nil where the hook is not the reason, and where the kernel's BTF cannot be read.
//
// Some hooks the kernel wants to know when it loads a program: a function, an LSM hook, an iterator, the tracepoint of a
// tp_btf program. They are found in its BTF, or in its modules'. To read that takes a tenth of a second: ask after the
// kernel has refused a program.
func CheckTarget(h volume.Hook) error {
	t, ok := targetOf(h)
	if !ok {
		return nil
	}
	types := btf.NewCache() // of its own: what is read of it stays in memory as long as it does
	kernel, err := types.Kernel()
	if err != nil {
		return nil //nolint:nilerr // the kernel's refusal says more
	}
	specs := []*btf.Spec{kernel}
	modules, _ := types.Modules()
	for _, module := range modules {
		if spec, err := types.Module(module); err == nil {
			specs = append(specs, spec)
		}
	}
	for _, spec := range specs {
		found, _ := spec.AnyTypesByName(t.prefix + t.name)
		switch found = slices.DeleteFunc(found, func(typ btf.Type) bool { return !t.is(typ) }); {
		case len(found) == 1:
			return nil
		case len(found) > 1:
			return unfit("%s %s: the kernel has several of this name; use another", t.what, quote(t.name))
		}
	}
	missing := &MissingError{What: t.what, Name: t.name, Where: "there are"}
	for typ, err := range kernel.All() {
		if err == nil && t.is(typ) {
			missing.Known = append(missing.Known, strings.TrimPrefix(typ.TypeName(), t.prefix))
		}
	}
	return missing
}

// target is what the kernel's BTF must have for a hook: a type of this kind, named with this prefix.
type target struct {
	what, name string
	kind       btf.Type
	prefix     string
}

func targetOf(h volume.Hook) (t target, ok bool) {
	switch h := h.(type) {
	case *volume.Fentry:
		return target{"kernel function", h.Function, (*btf.Func)(nil), ""}, true
	case *volume.LSM:
		return target{"LSM hook", h.Name, (*btf.Func)(nil), "bpf_lsm_"}, true
	case *volume.Iter:
		return target{"iterator", h.Target, (*btf.Struct)(nil), "bpf_iter__"}, true // the context of its programs
	case *volume.RawTracepoint:
		return target{"raw tracepoint", h.Name, (*btf.Typedef)(nil), "btf_trace_"}, true
	}
	return target{}, false
}

// is tells whether a type of the kernel's stands for such a target.
func (t target) is(typ btf.Type) bool {
	const variant = "__safe_" // of another one, for the verifier
	return reflect.TypeOf(typ) == reflect.TypeOf(t.kind) && strings.HasPrefix(typ.TypeName(), t.prefix) && !strings.Contains(typ.TypeName(), variant)
}
