// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/internal/netns"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Point is a hook of one interface in one network namespace.
type Point struct {
	Kind      volume.Kind      // xdp or tc
	Direction volume.Direction // of tc
	NetNS     uint64           // cookie of the network namespace (SO_NETNS_COOKIE)
	IfIndex   int
	Interface string // the name when it was resolved, for people
}

// String is the point in words: "xdp eth0", "tc eth0 egress".
func (p Point) String() string {
	name := p.Interface
	if name == "" {
		name = "interface " + strconv.Itoa(p.IfIndex)
	}
	s := string(p.Kind) + " " + name
	if p.Direction != "" {
		s += " " + string(p.Direction)
	}
	return s
}

// dirName is the name of the point's directory. It is short, has no dot, and parsePoint reads it.
func (p Point) dirName() string {
	hook := string(p.Kind)
	if p.Direction != "" {
		hook += "-" + string(p.Direction)
	}
	return fmt.Sprintf("%s-%d-%d", hook, p.NetNS, p.IfIndex)
}

var dirName = regexp.MustCompile(`^(xdp|tc-ingress|tc-egress)-([0-9]+)-([0-9]+)$`)

func parsePoint(name string) (Point, bool) {
	m := dirName.FindStringSubmatch(name)
	if m == nil {
		return Point{}, false
	}
	kind, direction, _ := strings.Cut(m[1], "-")
	p := Point{Kind: volume.Kind(kind), Direction: volume.Direction(direction)}
	var err1, err2 error
	p.NetNS, err1 = strconv.ParseUint(m[2], 10, 64)
	p.IfIndex, err2 = strconv.Atoi(m[3])
	return p, err1 == nil && err2 == nil
}

// check refuses what would be attached at the wrong place or by a wrong name.
func (p Point) check(m Member, prog *ebpf.Program) error {
	if _, ok := parsePoint(p.dirName()); !ok || p.IfIndex <= 0 {
		return fmt.Errorf("point %q: not a hook of an interface", p.dirName())
	}
	want := map[volume.Kind]ebpf.ProgramType{volume.KindXDP: ebpf.XDP, volume.KindTC: ebpf.SchedCLS}[p.Kind]
	if prog.Type() != want {
		return fmt.Errorf("%s: program %q is of type %s, the hook needs %s", p, m.Program, prog.Type(), want)
	}
	for _, v := range m.ProceedOn {
		if _, ok := verdicts(p.Kind)[v]; !ok {
			return fmt.Errorf("%s: program %.64q: %.32q is no verdict of the hook", p, m.Program, v)
		}
	}
	if !isElement(m.Volume) || m.Program == "" {
		return fmt.Errorf("member %q of volume %q: not a name", m.Program, m.Volume)
	}
	here, err := netns.Cookie()
	if err != nil {
		return err
	}
	if p.NetNS != here {
		return fmt.Errorf("%s: the interface is in another network namespace", p)
	}
	return nil
}

// verdicts are the results of programs at a hook, by name.
func verdicts(kind volume.Kind) map[volume.Verdict]int {
	if kind == volume.KindXDP {
		return volume.XDPVerdicts
	}
	return volume.TCVerdicts
}

// isElement reports whether s can be one element of a path on a bpffs.
func isElement(s string) bool { return s != "" && !strings.ContainsAny(s, "./\x00") }
