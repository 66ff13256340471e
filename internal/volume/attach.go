// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
)

const maxAttach = 64

// ParseAttach parses the value of the attribute attach: one entry, a map, or a list of them. An error is an
// *AttributeError.
func ParseAttach(s string) ([]Attach, error) {
	list, err := parseAttach(s)
	if err != nil {
		return nil, attributeError(KeyAttach, err)
	}
	return list, nil
}

func parseAttach(s string) ([]Attach, error) {
	if err := checkText(s); err != nil {
		return nil, err
	}
	root, err := decode(s)
	if err != nil {
		return nil, err
	}
	if root.Kind == yaml.MappingNode {
		a, err := readAttach(root)
		return []Attach{a}, err
	}
	if root.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("is %s; write a list of entries, like - {program: count, xdp: {interface: eth0}}", kindOf(root))
	}
	if len(root.Content) == 0 {
		return nil, errors.New("is empty; leave it out to attach every program where its ELF section says")
	}
	if len(root.Content) > maxAttach {
		return nil, fmt.Errorf("has %d entries; at most %d are possible", len(root.Content), maxAttach)
	}
	list := make([]Attach, len(root.Content))
	for i, n := range root.Content {
		if list[i], err = readAttach(n); err != nil {
			return nil, at(index(i), err)
		}
		for j, earlier := range list[:i] {
			if overlap(earlier, list[i]) {
				return nil, at(index(i), fmt.Errorf("program %s is at this point already, by attach[%d]; write one entry", quote(list[i].Program), j))
			}
		}
	}
	return list, nil
}

// readAttach reads one entry: a program and one hook.
func readAttach(n *yaml.Node) (Attach, error) {
	var a Attach
	if n.Kind != yaml.MappingNode {
		return a, fmt.Errorf("is %s; write a map, like {program: count, xdp: {interface: eth0}}", kindOf(n))
	}
	known := append([]string{"program"}, words(Kinds)...)
	for i := 0; i < len(n.Content); i += 2 {
		key, v := n.Content[i].Value, n.Content[i+1]
		var err error
		switch {
		case key == "program":
			if a.Program, err = text(v); err == nil {
				err = checkProgram(a.Program)
			}
		case !slices.Contains(Kinds, Kind(key)):
			return a, unknown("key", key, known)
		case a.Hook != nil:
			return a, fmt.Errorf("has two hooks, %s and %s; write an entry for each", a.Hook.Kind(), key)
		default:
			a.Hook, err = readHook(Kind(key), v)
		}
		if err != nil {
			return a, at(key, err)
		}
	}
	if a.Program == "" {
		return a, errors.New("program is missing; write program: name")
	}
	if a.Hook == nil {
		return a, errors.New("hook is missing; write one, like xdp: {interface: eth0}")
	}
	return a, nil
}

// overlap says whether two entries put one program at one point, as far as can be told without asking the kernel.
func overlap(a, b Attach) bool {
	if a.Program != b.Program || a.Hook.Kind() != b.Hook.Kind() {
		return false
	}
	if h, ok := a.Hook.(*TC); ok && h.Direction != b.Hook.(*TC).Direction {
		return false
	}
	if h, ok := a.Hook.(*Netkit); ok && h.Peer != b.Hook.(*Netkit).Peer {
		return false
	}
	interfaces := Interfaces(a.Hook)
	if interfaces == nil {
		return a.Hook.shape().sameAs(b.Hook.shape())
	}
	return slices.ContainsFunc(Interfaces(b.Hook), func(name string) bool { return slices.Contains(interfaces, name) })
}

// MarshalAttach writes attachments as ParseAttach reads them, without what is default.
func MarshalAttach(list []Attach) string {
	root := &yaml.Node{Kind: yaml.SequenceNode}
	for _, a := range list {
		root.Content = append(root.Content, &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{
			str("program"), str(a.Program),
			str(string(a.Hook.Kind())), writeHook(a.Hook),
		}})
	}
	return encode(root)
}

func index(i int) string { return "[" + strconv.Itoa(i) + "]" }
