// SPDX-License-Identifier: Apache-2.0

package members_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf/members"
)

// packets is how many frames a member got, and of which size.
type packets struct{ n, size uint64 }

// values say what is in Result.Value of a member after that. Where it says nothing, a test of its own does.
var values = map[string]func(t *testing.T, p packets) uint64{
	"subprograms":      func(_ *testing.T, p packets) uint64 { return 3*p.size + 3 },
	"global_functions": func(_ *testing.T, p packets) uint64 { return 2 * p.size },
	"loop":             constant(3 * 45),
	"each":             func(_ *testing.T, p packets) uint64 { return 28 * p.n },
	"tail_target":      func(_ *testing.T, p packets) uint64 { return p.n * p.size },
	"tail_call":        func(_ *testing.T, p packets) uint64 { return p.n },

	"kconfig":   func(t *testing.T, _ packets) uint64 { return kernelVersion(t) },
	"ksym":      func(t *testing.T, _ packets) uint64 { return kernelSymbol(t, "bpf_prog_put") },
	"core":      func(*testing.T, packets) uint64 { return uint64(os.Getpid()) },
	"weak":      constant(1),
	"conntrack": constant(uint64(unix.ENOENT)),

	"counter":         func(_ *testing.T, p packets) uint64 { return p.n * p.size },
	"globals":         func(_ *testing.T, p packets) uint64 { return 3*p.n + 1 + p.n },
	"spin_lock":       func(_ *testing.T, p packets) uint64 { return p.n },
	"full_stack":      constant(63 * 64 / 2),
	"snug_stack":      constant(62 * 63 / 2),
	"deep_stack":      constant(59*60/2 + 6),
	"snug_deep_stack": constant(58*59/2 + 6),

	"costly":        constant(1),
	"back_to_start": func(_ *testing.T, p packets) uint64 { return p.n },

	"kernel_ctx": constant(1), // lo
	"iterator":   constant(45),
	"dynptr":     constant(0x0800),
	"long_jump": func(_ *testing.T, p packets) uint64 {
		if p.size > 64 {
			return 2
		}
		return 1
	},
	"exception": constant(1),

	"adjust_head": func(_ *testing.T, p packets) uint64 { return p.size + 4 },
	"adjust_tail": func(_ *testing.T, p packets) uint64 { return p.size - 4 },
	"meta_write":  constant(0xcafe),
	"meta_read":   constant(0),
	"frags":       func(_ *testing.T, p packets) uint64 { return uint64(frame(int(p.size))[p.size-1]) },

	"packet_write": constant(0x0800),
	"ctx_write":    constant(0),
	"change_tail":  func(_ *testing.T, p packets) uint64 { return p.size - 4 },
	"vlan_push":    constant(5),
	"tcx":          func(_ *testing.T, p packets) uint64 { return p.size },

	"functions_a":    constant(90),
	"functions_b":    constant(90),
	"functions_c":    constant(90),
	"maps_a":         constant(19),
	"maps_b":         constant(19),
	"maps_c":         constant(19),
	"maps_d":         constant(19),
	"nobtf":          func(_ *testing.T, p packets) uint64 { return p.size * p.size },
	"nobtf_tc":       func(_ *testing.T, p packets) uint64 { return p.size * p.size },
	"proprietary":    func(_ *testing.T, p packets) uint64 { return p.size },
	"proprietary_tc": func(_ *testing.T, p packets) uint64 { return p.size },
	"twin":           constant(11),
	"twin_tc":        constant(11),
}

func constant(n uint64) func(*testing.T, packets) uint64 {
	return func(*testing.T, packets) uint64 { return n }
}

func TestMemberRunsAlone(t *testing.T) {
	for _, m := range members.All() {
		t.Run(fmt.Sprintf("%v/%s", m.Type, m.Program), func(t *testing.T) {
			for _, verdict := range verdicts(m) {
				for _, size := range sizes(m) {
					l := load(t, m, verdict)
					const n = 3
					for range n {
						if got, _ := l.run(t, frame(size)); got != verdict {
							t.Fatalf("%d bytes: got verdict %d, want %d", size, got, verdict)
						}
					}
					got := l.result(t)
					if got.Packets != n {
						t.Errorf("%d bytes: got %d packets, want %d", size, got.Packets, n)
					}
					if value := values[m.Program]; value == nil {
						continue
					} else if want := value(t, packets{n, uint64(size)}); got.Value != want {
						t.Errorf("%d bytes: got value %d, want %d", size, got.Value, want)
					}
				}
			}
		})
	}
}

// verdicts are those that a member can return: one that lets packets pass, one that drops them, and one that no kernel
// has.
func verdicts(m members.Member) []int32 {
	switch {
	case m.Program == "redirect" && m.Type == ebpf.XDP:
		return []int32{xdpRedirect}
	case m.Program == "redirect":
		return []int32{tcRedirect}
	case m.Program == "redirect_map": // for an interface that is not in the map
		return []int32{xdpPass, xdpDrop}
	case m.Type == ebpf.XDP:
		return []int32{xdpPass, xdpDrop, 42}
	}
	return []int32{tcOK, tcShot, 42}
}

// sizes are those of the frames that a member returns its verdict for.
func sizes(m members.Member) []int {
	switch m.Program {
	case "legacy_load", "legacy_load_function":
		return []int{128, 1500}
	case "frags":
		return []int{64, 1500, 9000}
	}
	return []int{64, 1500}
}

func TestAllHasEveryProgram(t *testing.T) {
	all := map[string]bool{}
	for _, m := range members.All() {
		all[fmt.Sprintf("%v %s", m.Type, m.Program)] = true
	}
	for name, object := range map[string]func() []byte{
		"XDP": members.XDP, "TC": members.TC, "Functions": members.Functions, "Long": members.Long, "Maps": members.Maps, "NoBTF": members.NoBTF,
		"Proprietary": members.Proprietary, "TwinA": members.TwinA, "TwinB": members.TwinB,
	} {
		for _, prog := range parse(t, object()).Programs {
			if key := fmt.Sprintf("%v %s", prog.Type, prog.Name); !all[key] {
				t.Errorf("All has no %s of %s", key, name)
			}
		}
	}
}

func parse(t *testing.T, object []byte) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// kernelVersion returns LINUX_VERSION_CODE. Distributions give their releases other numbers, so the third one is what
// the kernel says where it says the version that it was made from.
func kernelVersion(t *testing.T) uint64 {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	// Debian: release "6.1.0-50-cloud-amd64", version "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-05)".
	said := unix.ByteSliceToString(u.Release[:])
	if _, debian, ok := strings.Cut(unix.ByteSliceToString(u.Version[:]), "Debian "); ok {
		said = debian
	}
	var major, minor, patch uint64
	if _, err := fmt.Sscanf(said, "%d.%d.%d", &major, &minor, &patch); err != nil {
		t.Fatalf("kernel version %q: %v", said, err)
	}
	return major<<16 | minor<<8 | min(patch, 255)
}

func kernelSymbol(t *testing.T, name string) (address uint64) {
	t.Helper()
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && fields[2] == name {
			if _, err := fmt.Sscanf(fields[0], "%x", &address); err != nil {
				t.Fatal(err)
			}
			return address
		}
	}
	t.Fatalf("no %s in /proc/kallsyms", name)
	return 0
}
