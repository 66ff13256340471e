// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// pointTree prints points as a tree: an interface, its hooks, their programs in order. A hook without interface is a tree
// of its own.
func pointTree(w io.Writer, points []node.PointStatus) error {
	t := &tree{w: w}
	if len(points) == 0 {
		t.line("", "", "nothing runs")
	}
	for len(points) > 0 {
		i := points[0].Interface
		if i == (node.Interface{}) {
			t.line("", "", append([]string{printable(points[0].Point)}, pointWords(points[0])...)...)
			t.members("", points[0].Members)
			points = points[1:]
			continue
		}
		hooks := 1
		for hooks < len(points) && sameInterface(points[hooks].Interface, i) {
			hooks++
		}
		t.line("", "", interfaceWords(i)...)
		for n, p := range points[:hooks] {
			branch, below := branches(n == hooks-1)
			t.line(branch, below, append([]string{hookWords(p)}, pointWords(p)...)...)
			t.members(below, p.Members)
		}
		points = points[hooks:]
	}
	return t.err
}

func sameInterface(a, b node.Interface) bool {
	return a.Name == b.Name && a.Index == b.Index && a.NetNS == b.NetNS
}

func branches(last bool) (branch, below string) {
	if last {
		return "└─ ", "   "
	}
	return "├─ ", "│  "
}

func interfaceWords(i node.Interface) []string {
	words := []string{word(i.Name)}
	switch {
	case i.NetNS.Path != "":
		words = append(words, "in network namespace "+word(i.NetNS.Path))
	case i.NetNS.Cookie != 0:
		words = append(words, fmt.Sprintf("in network namespace with cookie %d", i.NetNS.Cookie))
	}
	return words
}

// hookWords is a point of an interface without the interface: "xdp (native)", "tc egress (tcx)".
func hookWords(p node.PointStatus) string {
	hook := p.Hook
	if p.Direction != "" {
		hook += " " + string(p.Direction)
	}
	return hook + parenthesised(p.Mode)
}

func pointWords(p node.PointStatus) (words []string) {
	if p.Program.ID != 0 {
		words = append(words, fmt.Sprintf("prog %d %s", p.Program.ID, word(p.Program.Name)))
	}
	if p.Interface.AttachedAs != "" {
		words = append(words, "attached as "+word(p.Interface.AttachedAs))
	}
	if p.Problem != "" {
		words = append(words, "PROBLEM: "+printable(p.Problem))
	}
	return words
}

// tree prints lines of at most 100 columns, and keeps the first error.
type tree struct {
	w   io.Writer
	err error
}

const columns = 100

func (t *tree) members(below string, members []node.MemberStatus) {
	for n, m := range members {
		branch, rest := branches(n == len(members)-1)
		rest = below + rest
		t.line(below+branch, rest+"  ", memberWords(m)...)
		t.line(rest, rest+"  ", append(ownerWords(m), imageWord(m))...)
		if m.Counts != nil {
			t.line(rest, rest+"  ", countWords(*m.Counts))
		}
	}
}

func memberWords(m node.MemberStatus) []string {
	words := []string{word(m.Program)}
	if m.Priority != nil {
		words = append(words, fmt.Sprintf("priority %d", *m.Priority), "proceedOn "+listed(m.ProceedOn))
	} else if m.ProgramID != 0 {
		words = append(words, fmt.Sprintf("prog %d", m.ProgramID))
	}
	if m.Runs > 0 {
		words = append(words, fmt.Sprintf("%d runs", m.Runs))
	}
	if m.Gone != "" {
		words = append(words, "PROBLEM: "+printable(m.Gone))
	}
	way := string(m.Way)
	if m.Why != "" {
		way += ": " + printable(m.Why)
	}
	if way != "" {
		words = append(words, way)
	}
	return words
}

func listed(verdicts []volume.Verdict) string {
	words := make([]string, len(verdicts))
	for i, v := range verdicts {
		words[i] = string(v)
	}
	return "[" + strings.Join(words, ", ") + "]"
}

// ownerWords are the pod, and how many more share its PersistentVolume; or the volume where there is no pod:
// "local:/run/count".
func ownerWords(m node.MemberStatus) []string {
	switch len(m.Pods) {
	case 0:
		return []string{word(m.VolumeID)}
	case 1:
		return []string{word(owner(m.Pods[0]))}
	}
	return []string{word(owner(m.Pods[0])), fmt.Sprintf("and %d more", len(m.Pods)-1)}
}

// imageWord is the image as it was named, by a digest that is cut short.
func imageWord(m node.MemberStatus) string {
	const shown = len("sha256:") + 12
	d := m.Digest.String()
	return word(byDigest(m.Image, d[:min(len(d), shown)]))
}

// byDigest is an image with what it resolved to; it may have been named by its digest.
func byDigest(image, digest string) string {
	name, _, _ := strings.Cut(image, "@")
	if digest == "" {
		return name // its record cannot be read
	}
	return name + "@" + digest
}

// countWords is "25 packets: drop 20, pass 5".
func countWords(c dispatcher.Counts) string {
	words := fmt.Sprintf("%d packets", c.Packets)
	var results []string
	for _, verdict := range slices.Sorted(maps.Keys(c.Verdicts)) {
		results = append(results, fmt.Sprintf("%s %d", verdict, c.Verdicts[verdict]))
	}
	if len(results) > 0 {
		words += ": " + strings.Join(results, ", ")
	}
	return words
}

// line prints texts two spaces apart, in as many lines as it takes. The first begins with first, others with rest.
func (t *tree) line(first, rest string, texts ...string) {
	line, empty := first, true
	for _, text := range texts {
		gap := "  "
		for _, w := range strings.Split(text, " ") {
			if !empty && utf8.RuneCountInString(line+gap+w) > columns {
				t.print(line)
				line, empty = rest, true
			}
			if !empty {
				line += gap
			}
			line, empty, gap = line+w, false, " "
		}
	}
	t.print(line)
}

func (t *tree) print(line string) {
	if t.err == nil {
		_, t.err = fmt.Fprintln(t.w, line)
	}
}
