// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// attachLSM attaches to the LSM hook that the program was loaded for: CheckTarget is what finds that it is missing.
func attachLSM(prog *ebpf.Program, h *volume.LSM) (link.Link, error) {
	if err := wantType(prog, ebpf.LSM); err != nil {
		return nil, err
	}
	// The kernel attaches all the same, and a program that was to refuse something refuses nothing.
	modules, err := SecurityModules()
	if err != nil {
		return nil, err
	}
	where := "LSM hook " + quote(h.Name)
	if len(modules) > 0 && !slices.Contains(modules, "bpf") {
		active := strings.Join(modules, ",")
		text := fmt.Sprintf("%s: no program would run there, as bpf is not among the active security modules; boot the node with lsm=%s,bpf", where, active)
		return nil, &worded{text, []error{ebpf.ErrNotSupported}}
	}
	l, err := link.AttachLSM(link.LSMOptions{Program: prog, Cookie: h.Cookie})
	if err != nil {
		return nil, explainTrampoline(err, where)
	}
	return l, nil
}

// SecurityModules lists the kernel's active security modules in the order they are asked; none where the kernel has no
// such thing. securityfs need not be mounted.
func SecurityModules() ([]string, error) {
	if text, err := os.ReadFile("/sys/kernel/security/lsm"); err == nil {
		return strings.Split(string(text), ","), nil
	}
	fs, err := openDetached("securityfs")
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer fs.Close()
	text, err := fs.read("lsm")
	if err != nil {
		return nil, fmt.Errorf("active security modules: %w", err)
	}
	return strings.Split(text, ","), nil
}
