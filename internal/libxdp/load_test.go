// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// A process without privileges is refused by every kernel as one with privileges is by a hardened kernel.
func TestRefusalSaysWhatToDo(t *testing.T) {
	bpftest.Root(t) // who is not root may not be told about capabilities
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+refused)
	out, err := cmd.CombinedOutput()
	want := "libxdp's protocol: not supported: the kernel refuses freplace programs (operation not permitted); use the fused dispatcher\n"
	if err == nil || string(out) != want {
		t.Errorf("it says %q, %v, want %q", out, err, want)
	}
}

// powerless calls f without any capability.
func powerless(f func() error) error {
	runtime.LockOSThread() // never unlocked
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return err
	}
	err := f()
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return errors.New("this is not ErrNotSupported: " + err.Error())
	}
	return err
}

// This machine's kernel may do either; then Load agrees with Supported, and so does Add.
func TestLoadAgreesWithSupported(t *testing.T) {
	bpftest.Root(t)
	spec, _ := counter(t, "count", pass)
	supported := Supported()
	prog, err := Load(spec, nil)
	if (err == nil) != (supported == nil) {
		t.Errorf("Load says %v, Supported %v", err, supported)
	}
	if err != nil {
		if !errors.Is(err, ebpf.ErrNotSupported) || err.Error() != supported.Error() {
			t.Errorf("Load says %v, Supported %v", err, supported)
		}
		return
	}
	prog.Close()
}

func TestLoadErrorIsTheVerifiersLastWord(t *testing.T) {
	bpftest.Root(t)
	bpftest.SkipIfNotSupported(t, Supported())
	_, err := Load(&ebpf.ProgramSpec{Name: "no_verdict", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Return(),
	}}, nil)
	const want = `program "no_verdict": the kernel refuses it as a component of libxdp's dispatcher: "R0 !read_ok"`
	var refused *LoadError
	if !errors.As(err, &refused) || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("error is %v, want the kernel's EACCES in it", err)
	}
}

func TestLoadErrorIsBounded(t *testing.T) {
	long := strings.Repeat("\x1b[31m", 1000)
	if text := (&LoadError{Program: long, Line: long}).Error(); len(text) > 700 || strings.Contains(text, "\x1b") {
		t.Errorf("%d bytes: %s", len(text), text)
	}
}

// What programs look like that come from elsewhere. Each counts its packets.
func TestLoadTakesEveryXDPProgram(t *testing.T) {
	w := newWorld(t)
	named := func(spec *ebpf.ProgramSpec, f *btf.Func) *ebpf.ProgramSpec {
		spec.Instructions[0] = btf.WithFuncMetadata(spec.Instructions[0].WithSymbol(f.Name), f)
		return spec
	}
	action := &btf.Enum{Name: "xdp_action", Size: 4, Values: []btf.EnumValue{{Name: "XDP_PASS", Value: pass}}}
	for name, change := range map[string]func(spec *ebpf.ProgramSpec) *ebpf.ProgramSpec{
		"without BTF": func(spec *ebpf.ProgramSpec) *ebpf.ProgramSpec { return spec },
		"that returns an enum": func(spec *ebpf.ProgramSpec) *ebpf.ProgramSpec {
			f := xdpFunc("with_enum")
			f.Type.(*btf.FuncProto).Return = action
			return named(spec, f)
		},
		"of a static function": func(spec *ebpf.ProgramSpec) *ebpf.ProgramSpec {
			f := xdpFunc("with_static")
			f.Linkage = btf.StaticFunc
			return named(spec, f)
		},
		"of a function without arguments": func(spec *ebpf.ProgramSpec) *ebpf.ProgramSpec {
			f := xdpFunc("with_void")
			f.Type.(*btf.FuncProto).Params = nil
			return named(spec, f)
		},
		"with inner functions and callbacks without BTF": func(spec *ebpf.ProgramSpec) *ebpf.ProgramSpec {
			end := spec.Instructions[len(spec.Instructions)-2:]
			spec.Instructions = append(spec.Instructions[:len(spec.Instructions)-2:len(spec.Instructions)-2],
				asm.Mov.Reg(asm.R1, asm.R6),
				asm.Mov.Imm(asm.R2, 7),
				asm.Call.Label("inner"),
				asm.Mov.Imm(asm.R1, 3),
				asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R2, Src: asm.PseudoFunc, Constant: -1}.WithReference("callback"),
				asm.Mov.Imm(asm.R3, 0),
				asm.Mov.Imm(asm.R4, 0),
				asm.FnLoop.Call(),
			)
			spec.Instructions = append(spec.Instructions, end...)
			spec.Instructions = append(spec.Instructions,
				asm.LoadMem(asm.R3, asm.R1, 0, asm.Word).WithSymbol("inner"),
				asm.Mov.Reg(asm.R0, asm.R2), asm.Return(),
				asm.Mov.Imm(asm.R0, 0).WithSymbol("callback"), asm.Return(),
			)
			return spec
		},
		"with frags": func(spec *ebpf.ProgramSpec) *ebpf.ProgramSpec {
			spec.Flags |= hasFrags
			return spec
		},
		"with a licence of its own": func(spec *ebpf.ProgramSpec) *ebpf.ProgramSpec {
			spec.License = "none of your business"
			return spec
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec, packets := counter(t, "count", pass)
			p := load1(t, change(spec), packets)
			other := w.program(t, "other", pass)
			w.mustAdd(t, p, Options{Run: Run{Priority: 1, ProceedOn: onPass}})
			w.meets(t, "alone", p)
			w.mustAdd(t, other, Options{Run: Run{Priority: 2, ProceedOn: onPass}})
			w.meets(t, "before another", p)
			w.meets(t, "the other", other)
			w.mustRemove(t, p.id, other.id)
		})
	}
}

func TestLoadLeavesItsSpec(t *testing.T) {
	bpftest.Root(t)
	spec, _ := counter(t, "count", pass)
	spec.Flags = hasFrags
	before := spec.Copy()
	if prog, err := Load(spec, nil); err == nil {
		prog.Close()
	}
	var a, b bytes.Buffer
	if err := errors.Join(before.Instructions.Marshal(&a, spec.ByteOrder), spec.Instructions.Marshal(&b, spec.ByteOrder)); err == nil && !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the instructions changed")
	}
	if spec.Type != ebpf.XDP || spec.Flags != hasFrags || spec.AttachTarget != nil || btf.FuncMetadata(&spec.Instructions[0]) != nil {
		t.Errorf("the spec changed: %v, flags %#x, target %v", spec.Type, spec.Flags, spec.AttachTarget)
	}
}
